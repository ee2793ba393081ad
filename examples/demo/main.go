// Command demo makes the same 350 calls in two ways, side by side, each against a provider of its own that enforces limits
// as OpenAI does: with the official SDK alone, and with the SDK inside llmrate. It needs no network and no key.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"sync"
	"time"

	"github.com/llmrate/llmrate"
	"github.com/llmrate/llmrate/examples/internal/provider"
	"github.com/openai/openai-go/v3/option"
	"github.com/openai/openai-go/v3/responses"
)

const (
	preferred = "gpt-5"
	fallback  = "gpt-5-mini"

	window = 2 * time.Second // stands for the provider's minute
	busy   = 6 * time.Second // in which all calls come: somewhat more than the provider takes
)

var models = []provider.Model{
	{
		Name:     preferred,
		Requests: provider.Limit{Max: 80, Per: window, Continuous: true},
		Tokens:   provider.Limit{Max: 16_000, Per: window, Continuous: true},
	},
	{
		Name:     fallback,
		Requests: provider.Limit{Max: 60, Per: window, Continuous: true},
		Tokens:   provider.Limit{Max: 10_000, Per: window, Continuous: true},
	},
}

var pricing = map[string]llmrate.Pricing{
	preferred: {Input: 1.25, Cached: 0.125, Output: 10},
	fallback:  {Input: 0.25, Cached: 0.025, Output: 2},
}

func main() {
	prompts := flag.String("prompts", "../testdata/prompts.jsonl", "`file` with the prompts")
	lenient := flag.Bool("lenient", false, "refused requests do not count against the provider's limits; OpenAI says they do")
	flag.Parse()
	if err := run(context.Background(), os.Stdout, *prompts, *lenient, overLoopback); err != nil {
		fmt.Fprintln(os.Stderr, "demo:", err)
		os.Exit(1)
	}
}

// serve puts a provider behind an address until stop is called.
type serve func(http.Handler) (address string, client *http.Client, stop func())

func overLoopback(h http.Handler) (string, *http.Client, func()) {
	srv := httptest.NewServer(h)
	return srv.URL, &http.Client{Transport: &http.Transport{MaxIdleConnsPerHost: 100}}, srv.Close
}

func run(ctx context.Context, out io.Writer, prompts string, lenient bool, serve serve) error {
	jobs, err := loadJobs(prompts)
	if err != nil {
		return err
	}
	limiter, err := newLimiter(ctx)
	if err != nil {
		return err
	}
	defer limiter.Close(ctx)

	var stops []func()
	newPass := func(name string) (*pass, []option.RequestOption) {
		p := &pass{name: name, server: provider.New(provider.Config{
			Models: models, FirstToken: 50 * time.Millisecond, PerToken: 500 * time.Microsecond, RefusedAreFree: lenient,
		})}
		address, client, stop := serve(p.server)
		stops = append(stops, stop)
		return p, []option.RequestOption{option.WithBaseURL(address + "/v1"), option.WithAPIKey("none"), option.WithHTTPClient(client)}
	}
	alone, sdk := newPass("SDK alone")
	alone.call = bare(responses.NewResponseService(sdk...))
	with, sdk := newPass("with llmrate")
	with.call = limited(limiter, responses.NewResponseService(append(sdk, option.WithMaxRetries(0))...))
	defer func() {
		for _, stop := range stops {
			stop()
		}
	}()

	fmt.Fprintf(out, "%d calls come within %v, twice: with the OpenAI SDK alone and with llmrate around it.\n", len(jobs), busy)
	fmt.Fprintf(out, "The provider's minute is %v long. %s is preferred, %s is cheaper and comes second.\n\n", window, preferred, fallback)
	runAll(ctx, out, jobs, alone, with)
	fmt.Fprintln(out)
	if err := printTable(out, alone, with); err != nil {
		return err
	}
	fmt.Fprintf(out, "\nThe SDK alone sent %.1f requests a call; %d of %d calls failed all the same, with %.0f %% of the token quota unused.\n",
		float64(alone.sent.Load())/float64(len(jobs)), alone.failed.Load(), len(jobs), 100*(1-alone.quota()))
	fmt.Fprintf(out, "llmrate sent each call when there was room for it: %d failed and %d requests were refused.\n",
		with.failed.Load(), with.refused())
	if with.failed.Load() > 0 || with.refused() > 0 {
		return errors.New("llmrate should have prevented that: please report it")
	}
	return nil
}

// runAll runs the passes at the same time and prints a line a second.
func runAll(ctx context.Context, out io.Writer, jobs []job, passes ...*pass) {
	start := time.Now()
	var wg sync.WaitGroup
	for _, p := range passes {
		wg.Go(func() { p.run(ctx, jobs) })
	}
	done := make(chan struct{})
	go func() { wg.Wait(); close(done) }()

	tick := time.NewTicker(time.Second)
	defer tick.Stop()
	for running := true; running; {
		select {
		case <-tick.C:
		case <-done:
			running = false
		}
		fmt.Fprintf(out, "%5.1f s", time.Since(start).Seconds())
		for _, p := range passes {
			fmt.Fprintf(out, "   %s: %3d answered, %3d failed, %4d refused (429)", p.name, p.answered.Load(), p.failed.Load(), p.refused())
		}
		fmt.Fprintln(out)
	}
}
