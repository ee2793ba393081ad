package main

import (
	"bytes"
	"context"
	"errors"
	"net"
	"net/http"
	"strings"
	"testing"
	"testing/synctest"
	"time"
	"unicode"
)

// The whole demo, in virtual time: the SDK and the provider talk over pipes instead of sockets.
func TestDemo(t *testing.T) {
	t.Run("strict", func(t *testing.T) { testDemo(t, false, overPipes) })
	t.Run("lenient", func(t *testing.T) { testDemo(t, true, overPipes) })
	t.Run("slow way", func(t *testing.T) { testDemo(t, false, overSlowPipes) })
}

func testDemo(t *testing.T, lenient bool, serve serve) {
	synctest.Test(t, func(t *testing.T) {
		var out bytes.Buffer
		if err := run(t.Context(), &out, "../../testdata/prompts.jsonl", lenient, serve); err != nil {
			t.Errorf("%v\n%s", err, &out)
		}
		for _, want := range []string{"with llmrate", "429s received", "wall time", "0 failed and 0 requests were refused."} {
			if !strings.Contains(out.String(), want) {
				t.Errorf("no %q in:\n%s", want, &out)
			}
		}
		if i := strings.IndexFunc(out.String(), func(r rune) bool { return r != '\n' && unicode.IsControl(r) }); i >= 0 {
			t.Errorf("control character at byte %d:\n%q", i, &out)
		}
	})
}

func overPipes(h http.Handler) (string, *http.Client, func()) {
	l := pipeListener{conns: make(chan net.Conn), closed: make(chan struct{})}
	srv := &http.Server{Handler: h}
	go func() { _ = srv.Serve(l) }()
	transport := &http.Transport{DialContext: l.dial, MaxIdleConnsPerHost: 100}
	return "http://provider.example", &http.Client{Transport: transport}, func() {
		transport.CloseIdleConnections()
		_ = srv.Close()
	}
}

// overSlowPipes lets requests reach the provider only every second and a half, and then all at once. See limits.
func overSlowPipes(h http.Handler) (string, *http.Client, func()) {
	return overPipes(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		const every = 1500 * time.Millisecond
		time.Sleep(every - time.Duration(time.Now().UnixNano())%every)
		h.ServeHTTP(w, r)
	}))
}

type pipeListener struct {
	conns  chan net.Conn
	closed chan struct{}
}

func (l pipeListener) dial(ctx context.Context, _, _ string) (net.Conn, error) {
	client, server := net.Pipe()
	select {
	case l.conns <- server:
		return client, nil
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

func (l pipeListener) Accept() (net.Conn, error) {
	select {
	case c := <-l.conns:
		return c, nil
	case <-l.closed:
		return nil, errors.New("listener is closed")
	}
}

func (l pipeListener) Close() error { close(l.closed); return nil }
func (pipeListener) Addr() net.Addr { return &net.TCPAddr{} }
