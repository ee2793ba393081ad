package llmrate_test

import (
	"context"
	"testing"
	"testing/synctest"
	"time"

	"github.com/llmrate/llmrate"
)

// summarize is the code under test: it knows nothing of the clock.
func summarize(ctx context.Context, limiter *llmrate.Limiter[string], text string) (string, error) {
	summary, _, err := llmrate.Do(ctx, limiter, "summary",
		func(ctx context.Context, a llmrate.Attempt[string]) (string, llmrate.Usage, error) {
			resp, err := call(ctx, a.Model, "Summarize: "+text)
			if err != nil {
				return "", llmrate.Usage{}, err
			}
			return resp.Text, llmrate.Usage{Requests: 1, InputTokens: resp.InputTokens, OutputTokens: resp.OutputTokens}, nil
		})
	return summary, err
}

func TestSummarizeKeepsToTheLimit(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		limiter, err := llmrate.New(t.Context(), llmrate.Config[string]{
			Models:   []llmrate.ModelConfig[string]{{ID: "large", Limits: llmrate.Limits{RequestsPerMinute: 2}}},
			JobTypes: map[string]llmrate.JobType[string]{"summary": {EstimatedTokens: 2_000}},
		})
		if err != nil {
			t.Fatal(err)
		}
		defer limiter.Close(t.Context())

		start := time.Now() // in the bubble: midnight UTC, the start of a minute
		for i, want := range []time.Duration{0, 0, time.Minute, time.Minute, 2 * time.Minute} {
			if _, err := summarize(t.Context(), limiter, "a long text"); err != nil {
				t.Fatal(err)
			}
			if got := time.Since(start); got != want {
				t.Errorf("call %d ended after %v, want %v", i, got, want)
			}
		}
	})
}

func TestSummarizeWhenFull(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		limiter, err := llmrate.New(t.Context(), llmrate.Config[string]{
			Models:   []llmrate.ModelConfig[string]{{ID: "large", Limits: llmrate.Limits{MaxConcurrent: 1}}},
			JobTypes: map[string]llmrate.JobType[string]{"summary": {EstimatedTokens: 2_000}},
		})
		if err != nil {
			t.Fatal(err)
		}
		r, err := limiter.TryAcquire(t.Context(), "summary")
		if err != nil {
			t.Fatal(err)
		}
		time.AfterFunc(30*time.Second, r.Release)

		start := time.Now()
		if _, err := summarize(t.Context(), limiter, "a long text"); err != nil {
			t.Fatal(err)
		}
		if got := time.Since(start); got != 30*time.Second {
			t.Errorf("ended after %v, want %v", got, 30*time.Second)
		}
	})
}
