package llmrate_test

import (
	"context"
	"errors"
	"fmt"
	"log"

	"github.com/llmrate/llmrate"
)

// Events are the place to count and to measure.
func ExampleConfig_onEvent() {
	onEvent := func(_ context.Context, e llmrate.Event) {
		switch e := e.(type) {
		case llmrate.StartedEvent:
			fmt.Println(e.Model, "started; seconds waited:", e.Waited.Seconds())
		case llmrate.EscalatedEvent:
			fmt.Println(e.Model, "had no room; next:", e.NextModel)
		case llmrate.EndedEvent:
			fmt.Println(e.Model, "ended; tokens:", e.Usage.TotalTokens())
		}
	}

	ctx := context.Background()
	limiter, err := llmrate.New(ctx, llmrate.Config[string]{
		Models: []llmrate.ModelConfig[string]{
			{ID: "large", Limits: llmrate.Limits{MaxConcurrent: 1}},
			{ID: "small", Limits: llmrate.Limits{MaxConcurrent: 1}},
		},
		JobTypes: map[string]llmrate.JobType[string]{"chat": {EstimatedTokens: 2_000}},
		OnEvent:  onEvent,
	})
	if err != nil {
		log.Fatal(err)
	}
	defer limiter.Close(ctx)

	r, err := limiter.TryAcquire(ctx, "chat")
	if err != nil {
		log.Fatal(err)
	}
	_, err = limiter.Run(ctx, "chat", func(context.Context, llmrate.Attempt[string]) (llmrate.Usage, error) {
		return llmrate.Usage{Requests: 1, InputTokens: 1_200, OutputTokens: 300}, nil
	}, llmrate.WithMaxWait(0))
	if err != nil {
		log.Fatal(err)
	}
	r.Release()
	// Output:
	// large started; seconds waited: 0
	// large had no room; next: small
	// small started; seconds waited: 0
	// small ended; tokens: 1500
	// large ended; tokens: 0
}

// Overage events show estimates that are too low, and retries that the SDK did by itself.
func ExampleOverageEvent() {
	ctx := context.Background()
	limiter, err := llmrate.New(ctx, llmrate.Config[string]{
		Models: []llmrate.ModelConfig[string]{{
			ID:     "large",
			Limits: llmrate.Limits{RequestsPerMinute: 500, TokensPerMinute: 500_000},
		}},
		JobTypes: map[string]llmrate.JobType[string]{"chat": {EstimatedTokens: 2_000}},
		OnEvent: func(_ context.Context, e llmrate.Event) {
			if e, ok := e.(llmrate.OverageEvent); ok {
				fmt.Printf("%s: %d %s more than the %d estimated for %s\n", e.Model, e.Excess, e.Resource, e.Estimated, e.JobType)
			}
		},
	})
	if err != nil {
		log.Fatal(err)
	}
	defer limiter.Close(ctx)

	_, err = limiter.Run(ctx, "chat", func(context.Context, llmrate.Attempt[string]) (llmrate.Usage, error) {
		return llmrate.Usage{Requests: 2, InputTokens: 1_200, OutputTokens: 1_800}, nil
	})
	if err != nil {
		log.Fatal(err)
	}
	// Output:
	// large: 1 requests more than the 1 estimated for chat
	// large: 1000 tokens more than the 2000 estimated for chat
}

// A refusal says what each model lacked.
func ExampleCapacityError() {
	ctx := context.Background()
	limiter, err := llmrate.New(ctx, llmrate.Config[string]{
		Models: []llmrate.ModelConfig[string]{
			{ID: "large", Limits: llmrate.Limits{MaxConcurrent: 1}},
			{ID: "small", Limits: llmrate.Limits{TokensPerMinute: 1_000}},
		},
		JobTypes: map[string]llmrate.JobType[string]{"chat": {EstimatedTokens: 2_000}},
	})
	if err != nil {
		log.Fatal(err)
	}
	defer limiter.Close(ctx)

	r, err := limiter.TryAcquire(ctx, "chat")
	if err != nil {
		log.Fatal(err)
	}
	defer r.Release()

	_, err = limiter.TryAcquire(ctx, "chat")
	fmt.Println(errors.Is(err, llmrate.ErrNoCapacity))
	if full, ok := errors.AsType[*llmrate.CapacityError](err); ok {
		for _, s := range full.Models {
			fmt.Printf("%s: %s: needs %d of %s, has %d of %d\n", s.Model, s.Reason, s.Needed, s.Resource, s.Free, s.Limit)
		}
		// full.RetryAt would say when a window's edge makes room. Here a job has to end first.
		fmt.Println(full.RetryAt.IsZero())
	}
	// Output:
	// true
	// large: limit: needs 1 of concurrency, has 0 of 1
	// small: too large: needs 2000 of tokens, has 0 of 1000
	// true
}

func ExampleLimiter_Stats() {
	ctx := context.Background()
	limiter, err := llmrate.New(ctx, llmrate.Config[string]{
		Models: []llmrate.ModelConfig[string]{{
			ID:     "large",
			Limits: llmrate.Limits{TokensPerMinute: 100_000, MaxConcurrent: 8},
		}},
		JobTypes: map[string]llmrate.JobType[string]{
			"batch": {EstimatedTokens: 10_000, Ratio: 0.75, FixedRatio: true},
			"chat":  {EstimatedTokens: 2_000, Ratio: 0.25, FixedRatio: true},
		},
	})
	if err != nil {
		log.Fatal(err)
	}
	defer limiter.Close(ctx)

	r, err := limiter.Acquire(ctx, "chat", llmrate.WithJobID("request-4711"))
	if err != nil {
		log.Fatal(err)
	}
	defer r.Release()

	st := limiter.Stats()
	large := st.Models["large"]
	fmt.Println("running:", large.Concurrency.Active, "of", large.Concurrency.Limit)
	fmt.Println("waiting:", large.Concurrency.Waiting)
	fmt.Println("limit:", large.TokensPerMinute.Limit, "tokens per minute") // and Used, Remaining, ResetsAt
	fmt.Println("slots:", large.JobTypes["batch"].Slots, "batch,", large.JobTypes["chat"].Slots, "chat")
	fmt.Println("ratio of chat:", st.JobTypes["chat"].Ratio)
	for _, job := range st.Jobs {
		fmt.Println(job.JobID, job.JobType, job.Model)
	}
	// Output:
	// running: 1 of 8
	// waiting: 0
	// limit: 100000 tokens per minute
	// slots: 6 batch, 2 chat
	// ratio of chat: 0.25
	// request-4711 chat large
}
