// Package provider is an LLM provider for demos and tests: a server that speaks OpenAI's Chat Completions, streamed or
// not, and Responses, and enforces limits as OpenAI does, with its headers and its errors. What it serves is made up;
// what it refuses is not.
//
// A token is four bytes of text. The reply's length and text follow from the prompt, so that two runs do the same work.
package provider

import (
	"context"
	"encoding/json"
	"fmt"
	"hash/fnv"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"time"
)

// Model is what the server knows of one model.
type Model struct {
	Name          string
	Requests      Limit
	Tokens        Limit // input and output together
	MaxConcurrent int64 // 0: not limited
	Overloaded    bool  // answers 503 to every call it admits
}

// Config says what the server serves, and how fast.
type Config struct {
	Models     []Model
	FirstToken time.Duration // from a call's arrival to its first token
	PerToken   time.Duration // for each token after that

	// RefusedAreFree does not count refused requests. OpenAI, Azure and Gemini count them, and so does the server without it.
	RefusedAreFree bool
}

// Server is the http.Handler.
type Server struct {
	cfg Config
	mux *http.ServeMux

	mu     sync.Mutex // guards what models point to
	models map[string]*model
	calls  int64
}

// New returns a server whose windows are all unused.
func New(cfg Config) *Server {
	s := &Server{cfg: cfg, mux: http.NewServeMux(), models: make(map[string]*model)}
	for _, m := range cfg.Models {
		s.models[m.Name] = &model{Model: m, requests: window{Limit: m.Requests}, tokens: window{Limit: m.Tokens}}
	}
	s.mux.HandleFunc("POST /v1/chat/completions", s.chatCompletions)
	s.mux.HandleFunc("POST /v1/responses", s.responses)
	return s
}

func (s *Server) ServeHTTP(w http.ResponseWriter, r *http.Request) { s.mux.ServeHTTP(w, r) }

// Report returns what has arrived for a model so far.
func (s *Server) Report(name string) Report {
	s.mu.Lock()
	defer s.mu.Unlock()
	m := s.models[name]
	return m.oracle.report(m.Requests, m.Tokens)
}

// model is a Model in use. Server.mu guards it.
type model struct {
	Model
	requests, tokens window
	active           int64
	oracle           oracle
}

// refusal is an error answer.
type refusal struct {
	status          int
	typ, code, text string
	retryAfter      time.Duration // 0: no header
}

// admit decides whether a call may start, and charges it if so.
//
// OpenAI reserves the prompt plus max_tokens when a call arrives. What it does with the part of a reservation that was not
// used is not documented; this server gives it back.
func (m *model) admit(now time.Time, tokens int64) *refusal {
	m.requests.advance(now)
	m.tokens.advance(now)
	if m.Tokens.Max > 0 && tokens > m.Tokens.Max {
		return &refusal{status: http.StatusTooManyRequests, typ: "tokens", code: "rate_limit_exceeded", text: fmt.Sprintf(
			"Request too large for %s in organization org-demo on tokens per %s (TPM): Limit %d, Requested %d. "+
				"The input or output tokens must be reduced in order to run successfully.", m.Name, per(m.Tokens.Per), m.Tokens.Max, tokens)}
	}
	if d := m.requests.wait(1); d > 0 {
		return m.rateLimited("requests", "RPM", &m.requests, 1, d)
	}
	if d := m.tokens.wait(tokens); d > 0 {
		return m.rateLimited("tokens", "TPM", &m.tokens, tokens, d)
	}
	if m.MaxConcurrent > 0 && m.active >= m.MaxConcurrent {
		return &refusal{status: http.StatusTooManyRequests, typ: "requests", code: "rate_limit_exceeded", text: fmt.Sprintf(
			"Rate limit reached for %s in organization org-demo on concurrent requests: Limit %d, Used %d, Requested 1.",
			m.Name, m.MaxConcurrent, m.active)}
	}
	if m.Overloaded {
		return &refusal{status: http.StatusServiceUnavailable, typ: "service_unavailable_error", code: "server_is_overloaded",
			text: "The server is currently overloaded with other requests. Please try again later."}
	}
	m.requests.spend(1)
	m.tokens.spend(tokens)
	m.active++
	return nil
}

func (m *model) rateLimited(typ, short string, w *window, requested int64, wait time.Duration) *refusal {
	return &refusal{status: http.StatusTooManyRequests, typ: typ, code: "rate_limit_exceeded", retryAfter: wait, text: fmt.Sprintf(
		"Rate limit reached for %s in organization org-demo on %s per %s (%s): Limit %d, Used %d, Requested %d. Please try again in %s.",
		m.Name, typ, per(w.Per), short, w.Max, w.Max-w.remaining(), requested, roundUp(wait))}
}

// per names a window as OpenAI does. A demo's minute may be shorter.
func per(d time.Duration) string {
	switch d {
	case time.Minute:
		return "min"
	case 24 * time.Hour:
		return "day"
	}
	return d.String()
}

func roundUp(d time.Duration) time.Duration {
	return (d + time.Millisecond - 1).Truncate(time.Millisecond)
}

func (m *model) headers(h http.Header) {
	for name, w := range map[string]*window{"requests": &m.requests, "tokens": &m.tokens} {
		if w.Max == 0 {
			continue
		}
		h.Set("x-ratelimit-limit-"+name, strconv.FormatInt(w.Max, 10))
		h.Set("x-ratelimit-remaining-"+name, strconv.FormatInt(w.remaining(), 10))
		h.Set("x-ratelimit-reset-"+name, roundUp(w.reset()).String())
	}
}

func (s *Server) chatCompletions(w http.ResponseWriter, r *http.Request) {
	req, c, res := s.start(w, r)
	switch {
	case c == nil:
	case req.Stream:
		s.stream(r.Context(), w, c, res, req.StreamOptions.IncludeUsage)
	default:
		s.reply(r.Context(), w, c, res, res.chat())
	}
}

// responses serves the Responses API, without streams.
func (s *Server) responses(w http.ResponseWriter, r *http.Request) {
	if _, c, res := s.start(w, r); c != nil {
		s.reply(r.Context(), w, c, res, res.response())
	}
}

// start reads a request and admits it; if it is refused, the answer is written and the call is nil.
func (s *Server) start(w http.ResponseWriter, r *http.Request) (req request, c *call, res completion) {
	if err := json.NewDecoder(r.Body).Decode(&req); err != nil {
		writeError(w, &refusal{status: http.StatusBadRequest, typ: "invalid_request_error",
			text: "We could not parse the JSON body of your request: " + err.Error()})
		return req, nil, res
	}
	m := s.models[req.Model]
	if m == nil {
		writeError(w, &refusal{status: http.StatusNotFound, typ: "invalid_request_error", code: "model_not_found",
			text: fmt.Sprintf("The model `%s` does not exist or you do not have access to it.", req.Model)})
		return req, nil, res
	}
	prompt := req.prompt()
	res = completion{model: req.Model, input: Tokens(prompt), output: req.outputTokens(prompt), finish: "stop"}
	res.text = replyText(res.output)
	if res.output == req.maxTokens(0) {
		res.finish = "length"
	}
	c = &call{s: s, m: m, reserved: res.input + req.maxTokens(16), input: res.input} // 16: what OpenAI reserves when not told
	if refused := c.begin(w.Header()); refused != nil {
		writeError(w, refused)
		return req, nil, res
	}
	res.id, res.created = c.id, c.arrival.at.Unix()
	return req, c, res
}

// reply answers in one piece.
func (s *Server) reply(ctx context.Context, w http.ResponseWriter, c *call, res completion, body object) {
	here := pause(ctx, s.cfg.FirstToken+time.Duration(res.output)*s.cfg.PerToken)
	// The slot and the tokens come back before the caller sees the answer, so that a caller who keeps count is never ahead. If
	// the caller has gone, the work is charged all the same.
	c.end(res.output)
	if !here {
		return
	}
	w.Header().Set("Content-Type", "application/json")
	_ = json.NewEncoder(w).Encode(body) // fails only if the caller has gone
}

func (s *Server) stream(ctx context.Context, w http.ResponseWriter, c *call, res completion, includeUsage bool) {
	const tokensPerChunk = 8
	var sent int64
	defer func() { c.end(sent) }() // on a cut stream, what was produced is charged
	if !pause(ctx, s.cfg.FirstToken) {
		return
	}
	w.Header().Set("Content-Type", "text/event-stream")
	send := func(v any) bool {
		data, err := json.Marshal(v)
		if err == nil {
			_, err = fmt.Fprintf(w, "data: %s\n\n", data)
		}
		if err == nil {
			err = http.NewResponseController(w).Flush()
		}
		return err == nil
	}
	for text := res.text; text != ""; {
		n := min(len(text), tokensPerChunk*bytesPerToken)
		if !pause(ctx, time.Duration(n/bytesPerToken)*s.cfg.PerToken) {
			return
		}
		sent += int64(n / bytesPerToken)
		if !send(res.delta(text[:n], nil)) {
			return
		}
		text = text[n:]
	}
	c.end(sent)
	if !send(res.delta("", &res.finish)) {
		return
	}
	if includeUsage && !send(res.usageChunk()) {
		return
	}
	_, _ = fmt.Fprint(w, "data: [DONE]\n\n")
}

// call is one admitted request.
type call struct {
	s               *Server
	m               *model
	id              string
	reserved, input int64
	arrival         *arrival
	once            sync.Once
}

func (c *call) begin(h http.Header) *refusal {
	c.s.mu.Lock()
	defer c.s.mu.Unlock()
	now := time.Now() // under the lock, so that arrivals are in order
	c.s.calls++
	c.id = fmt.Sprintf("chatcmpl-%06d", c.s.calls)
	c.arrival = c.m.oracle.arrive(now)
	refused := c.m.admit(now, c.reserved)
	if refused != nil && !c.s.cfg.RefusedAreFree {
		c.m.requests.penalise(1)
	}
	c.m.headers(h)
	h.Set("x-request-id", strings.Replace(c.id, "chatcmpl", "req", 1))
	switch {
	case refused == nil:
		c.m.oracle.begin()
	case refused.status == http.StatusTooManyRequests:
		c.m.oracle.rateLimited++
	}
	return refused
}

// end settles the call with the output that was produced. Only the first end counts.
func (c *call) end(output int64) {
	c.once.Do(func() {
		c.s.mu.Lock()
		defer c.s.mu.Unlock()
		c.m.active--
		c.m.tokens.advance(time.Now())
		c.m.tokens.settle(c.arrival.at, c.reserved, c.input+output)
		c.m.oracle.end(c.arrival, c.input+output)
	})
}

// pause waits for d and reports whether the caller is still there.
func pause(ctx context.Context, d time.Duration) bool {
	if d <= 0 {
		return ctx.Err() == nil
	}
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return true
	case <-ctx.Done():
		return false
	}
}

const bytesPerToken = 4

// Tokens is the number of tokens the server counts for a text.
func Tokens(text string) int64 { return int64(len(text)+bytesPerToken-1) / bytesPerToken }

// outputTokens is how long the reply to a prompt is: 30 to 100 % of what the caller allows, by the prompt's hash.
func (r *request) outputTokens(prompt string) int64 {
	h := fnv.New32a()
	_, _ = h.Write([]byte(prompt))
	return max(1, r.maxTokens(256)*int64(30+h.Sum32()%71)/100)
}

const filler = "The passage says that rays of light differ in how far they are bent, and that colour follows from it. "

func replyText(tokens int64) string {
	n := int(tokens) * bytesPerToken
	return strings.Repeat(filler, n/len(filler)+1)[:n]
}
