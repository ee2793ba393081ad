package provider

import (
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

// post sends one call straight to the handler: without sockets, so that it runs in virtual time.
func post(t *testing.T, s *Server, body string) *httptest.ResponseRecorder {
	t.Helper()
	w := httptest.NewRecorder()
	r := httptest.NewRequestWithContext(t.Context(), http.MethodPost, "/v1/chat/completions", strings.NewReader(body))
	s.ServeHTTP(w, r)
	return w
}

// ask is a request of 2 input tokens and up to maxTokens output tokens.
func ask(model string, maxTokens string) string {
	return `{"model":"` + model + `","max_completion_tokens":` + maxTokens + `,"messages":[{"role":"user","content":"12345678"}]}`
}

type errorBody struct {
	Error struct {
		Message, Type string
		Param, Code   *string
	}
}

func wantError(t *testing.T, w *httptest.ResponseRecorder, status int, typ, code, message string) {
	t.Helper()
	var e errorBody
	if err := json.Unmarshal(w.Body.Bytes(), &e); err != nil {
		t.Fatalf("error body %q: %v", w.Body, err)
	}
	got := ""
	if e.Error.Code != nil {
		got = *e.Error.Code
	}
	if w.Code != status || e.Error.Type != typ || got != code || !strings.HasPrefix(e.Error.Message, message) {
		t.Fatalf("got %d %s, want %d, type %q, code %q, message %q", w.Code, w.Body, status, typ, code, message)
	}
}

func wantHeader(t *testing.T, w *httptest.ResponseRecorder, name, want string) {
	t.Helper()
	if got := w.Header().Get(name); got != want {
		t.Errorf("header %s = %q, want %q", name, got, want)
	}
}

func TestRequestsFixedSlices(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := New(Config{Models: []Model{{Name: "m", Requests: Limit{Max: 2, Per: time.Minute}}}})
		time.Sleep(50 * time.Second) // the bubble's clock starts on a full minute
		for range 2 {
			if w := post(t, s, ask("m", "1")); w.Code != http.StatusOK {
				t.Fatalf("within the limit: %d %s", w.Code, w.Body)
			}
		}
		w := post(t, s, ask("m", "1"))
		wantError(t, w, 429, "requests", "rate_limit_exceeded",
			"Rate limit reached for m in organization org-demo on requests per min (RPM): Limit 2, Used 2, Requested 1. Please try again in 10s.")
		wantHeader(t, w, "retry-after", "10")
		wantHeader(t, w, "retry-after-ms", "10000")
		wantHeader(t, w, "x-ratelimit-limit-requests", "2")
		wantHeader(t, w, "x-ratelimit-remaining-requests", "0")
		wantHeader(t, w, "x-ratelimit-reset-requests", "10s")

		time.Sleep(10 * time.Second)
		if w := post(t, s, ask("m", "1")); w.Code != http.StatusOK {
			t.Fatalf("in the next minute: %d %s", w.Code, w.Body)
		}
		r := s.Report("m")
		if r.Arrived != 4 || r.Served != 3 || r.RateLimited != 1 || r.MostRequests != 3 || r.RequestsAllowed != 4 {
			t.Errorf("report %+v", r)
		}
	})
}

func TestTokensContinuous(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := New(Config{Models: []Model{{Name: "m", Tokens: Limit{Max: 120, Per: time.Minute, Continuous: true}}}})
		// The reply to this prompt is shorter than allowed. What was reserved and not used comes back.
		w := post(t, s, ask("m", "100"))
		wantHeader(t, w, "x-ratelimit-limit-tokens", "120")
		wantHeader(t, w, "x-ratelimit-remaining-tokens", "18") // a snapshot taken when the call arrived
		wantHeader(t, w, "x-ratelimit-reset-tokens", "51s")
		used := s.Report("m").Tokens
		if used <= 2 || used >= 102 {
			t.Fatalf("served %d tokens, want a reply shorter than 100", used)
		}

		w = post(t, s, ask("m", "118")) // all there is: fits when the first call's tokens have come back
		wait := time.Duration(used) * time.Minute / 120
		wantError(t, w, 429, "tokens", "rate_limit_exceeded",
			"Rate limit reached for m in organization org-demo on tokens per min (TPM): Limit 120, Used ")
		time.Sleep(wait - time.Millisecond)
		if w := post(t, s, ask("m", "118")); w.Code != 429 {
			t.Fatalf("1 ms early: %d", w.Code)
		}
		time.Sleep(time.Millisecond)
		if w := post(t, s, ask("m", "118")); w.Code != 200 {
			t.Fatalf("when promised: %d %s", w.Code, w.Body)
		}
		wantError(t, post(t, s, ask("m", "119")), 429, "tokens", "rate_limit_exceeded", "Request too large for m")
	})
}

// A window stands open for what it promised, however the load comes: checked by the oracle, which counts apart.
func TestLimitsHoldUnderLoad(t *testing.T) {
	for _, continuous := range []bool{false, true} {
		synctest.Test(t, func(t *testing.T) {
			requests := Limit{Max: 40, Per: 10 * time.Second, Continuous: continuous}
			tokens := Limit{Max: 1500, Per: 10 * time.Second, Continuous: continuous}
			s := New(Config{
				Models:     []Model{{Name: "m", Requests: requests, Tokens: tokens, MaxConcurrent: 6}},
				FirstToken: 300 * time.Millisecond, PerToken: 5 * time.Millisecond,
			})
			var wg sync.WaitGroup
			for range 500 {
				wg.Go(func() { post(t, s, ask("m", "60")) })
				time.Sleep(70 * time.Millisecond)
			}
			wg.Wait()
			r := s.Report("m")
			if r.Arrived != 500 || r.Served+r.RateLimited != 500 || r.RateLimited == 0 || r.PeakConcurrent != 6 {
				t.Errorf("continuous %v: report %+v", continuous, r)
			}
			if float64(r.Tokens) > r.TokensAllowed || float64(r.Served) > r.RequestsAllowed {
				t.Errorf("continuous %v: served more than allowed: %+v", continuous, r)
			}
			if !continuous && r.MostTokens > tokens.Max {
				t.Errorf("%d tokens in one slice, limit %d", r.MostTokens, tokens.Max)
			}
			if m := s.models["m"]; m.active != 0 {
				t.Errorf("%d slots still taken", m.active)
			}
		})
	}
}

func TestRefusedRequestsCount(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := New(Config{Models: []Model{{Name: "m",
			Requests: Limit{Max: 3, Per: time.Minute, Continuous: true}, Tokens: Limit{Max: 20, Per: time.Minute, Continuous: true}}}})
		post(t, s, ask("m", "1"))
		for range 2 {
			wantError(t, post(t, s, ask("m", "18")), 429, "tokens", "rate_limit_exceeded", "")
		}
		for range 5 { // beyond the limit they no longer do: knocking does not run into debt
			wantError(t, post(t, s, ask("m", "1")), 429, "requests", "rate_limit_exceeded", "")
		}
		time.Sleep(20 * time.Second)
		if w := post(t, s, ask("m", "1")); w.Code != 200 {
			t.Errorf("after one request's worth of time: %d %s", w.Code, w.Body)
		}
	})
}

func TestConcurrency(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := New(Config{Models: []Model{{Name: "m", MaxConcurrent: 1}}, FirstToken: time.Second})
		done := make(chan int)
		go func() { done <- post(t, s, ask("m", "1")).Code }()
		synctest.Wait()
		w := post(t, s, ask("m", "1"))
		wantError(t, w, 429, "requests", "rate_limit_exceeded",
			"Rate limit reached for m in organization org-demo on concurrent requests: Limit 1")
		wantHeader(t, w, "retry-after", "")
		if code := <-done; code != 200 {
			t.Fatalf("the first call: %d", code)
		}
		if w := post(t, s, ask("m", "1")); w.Code != 200 {
			t.Fatalf("after the first call: %d", w.Code)
		}
	})
}

func TestErrors(t *testing.T) {
	s := New(Config{Models: []Model{{Name: "m", Overloaded: true}}})
	wantError(t, post(t, s, ask("m", "1")), 503, "service_unavailable_error", "server_is_overloaded", "The server is currently overloaded")
	wantError(t, post(t, s, ask("n", "1")), 404, "invalid_request_error", "model_not_found", "The model `n` does not exist")
	wantError(t, post(t, s, "{"), 400, "invalid_request_error", "", "We could not parse")
	if r := s.Report("m"); r.Arrived != 1 || r.Served != 0 || r.RateLimited != 0 {
		t.Errorf("report %+v", r)
	}
}

func TestContentParts(t *testing.T) {
	s := New(Config{Models: []Model{{Name: "m"}}})
	w := post(t, s, `{"model":"m","max_tokens":1,"messages":[
		{"content":"1234"}, {"content":[{"type":"text","text":"5678"},{"type":"text","text":"9"}]}]}`)
	var got struct {
		Usage struct {
			PromptTokens     int64 `json:"prompt_tokens"`
			CompletionTokens int64 `json:"completion_tokens"`
		}
	}
	if err := json.Unmarshal(w.Body.Bytes(), &got); err != nil || got.Usage.PromptTokens != 3 || got.Usage.CompletionTokens != 1 {
		t.Errorf("%v, body %s", err, w.Body)
	}
}
