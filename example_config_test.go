package llmrate_test

import (
	"context"
	"errors"
	"fmt"
	"log"
	"time"

	"github.com/llmrate/llmrate"
)

// All faults come at once, each with the path of its field. New makes the same check.
func ExampleConfig_Validate() {
	err := llmrate.Config[string]{
		Models: []llmrate.ModelConfig[string]{
			{ID: "large", Limits: llmrate.Limits{TokensPerMinute: -1}},
			{ID: "large"},
		},
		JobTypes: map[string]llmrate.JobType[string]{
			"chat":    {Ratio: 0.7, MaxWait: map[string]time.Duration{"lagre": 0}},
			"summary": {Ratio: 0.7},
		},
	}.Validate()
	fmt.Println(err)

	first, ok := errors.AsType[*llmrate.FieldError](err)
	fmt.Println(ok, first.Field)
	// Output:
	// llmrate: Models[0].Limits.TokensPerMinute: must not be negative, is -1
	// llmrate: Models[1].ID: "large" is already the ID of Models[0]
	// llmrate: JobTypes["chat"].MaxWait["lagre"]: unknown model; the models are "large"
	// llmrate: JobTypes: the ratios sum to 1.4, must be at most 1
	// true Models[0].Limits.TokensPerMinute
}

// Limits count in fixed windows unless told otherwise: calendar minutes and days, in UTC.
func ExampleLimits() {
	limits := llmrate.Limits{
		RequestsPerMinute: 500,
		TokensPerMinute:   500_000,
		RequestsPerDay:    10_000,
		MaxConcurrent:     50,
	}
	st := inForce(limits)
	fmt.Println(st.RequestsPerMinute.Limit, st.TokensPerMinute.Limit, st.RequestsPerDay.Limit, st.Concurrency.Limit)
	fmt.Println("tokens per day:", st.TokensPerDay.Limit) // 0: not limited
	// Output:
	// 500 500000 10000 50
	// tokens per day: 0
}

// A token bucket refills all the time. Its burst says how much it holds, and so how much can go out at once.
func ExampleLimits_continuous() {
	limits := llmrate.Limits{
		RequestsPerMinute: 600, // one every 100 ms
		Refill:            llmrate.Continuous.WithBurst(time.Second),
	}
	fmt.Println("at once:", inForce(limits).RequestsPerMinute.Limit)

	limits.Refill = llmrate.Continuous
	fmt.Println("at once:", inForce(limits).RequestsPerMinute.Limit)
	// Output:
	// at once: 10
	// at once: 600
}

// Custom limits have windows of any length and a refill of their own.
func ExampleLimits_custom() {
	limits := llmrate.Limits{
		TokensPerMinute: 300_000,
		Custom: []llmrate.CustomLimit{
			{Resource: llmrate.Requests, Per: 10 * time.Second, Max: 300},
			{Resource: llmrate.OutputTokens, Per: time.Hour, Max: 1_000_000, Refill: llmrate.Continuous},
		},
	}
	for i, custom := range inForce(limits).Custom {
		fmt.Println(limits.Custom[i].Resource, custom.Limit, "in", limits.Custom[i].Per)
	}
	// Output:
	// requests 300 in 10s
	// output_tokens 1000000 in 1h0m0s
}

// CountTokens says what a provider counts against the token limits: here output tokens ten times, and cached ones not.
func ExampleModelConfig_countTokens() {
	ctx := context.Background()
	limiter, err := llmrate.New(ctx, llmrate.Config[string]{
		Models: []llmrate.ModelConfig[string]{{
			ID:          "large",
			Limits:      llmrate.Limits{TokensPerMinute: 10_000},
			CountTokens: func(u llmrate.Usage) int64 { return u.InputTokens + 10*u.OutputTokens },
		}},
		JobTypes: map[string]llmrate.JobType[string]{
			// Split, because CountTokens cannot weigh a total.
			"short": {EstimatedInputTokens: 2_000, EstimatedOutputTokens: 500},
			"long":  {EstimatedInputTokens: 2_000, EstimatedOutputTokens: 1_000},
		},
	})
	if err != nil {
		log.Fatal(err)
	}
	defer limiter.Close(ctx)

	_, err = limiter.TryAcquire(ctx, "long") // 2,000 and 10 × 1,000
	fmt.Println("long too large:", errors.Is(err, llmrate.ErrTooLarge))

	r, err := limiter.TryAcquire(ctx, "short") // 2,000 and 10 × 500
	if err != nil {
		log.Fatal(err)
	}
	defer r.Release()
	fmt.Println("short runs on", r.Model())
	// Output:
	// long too large: true
	// short runs on large
}

// OpenAI refills continuously, and spreads requests over shorter slices than a minute.
func ExampleModelConfig_openAI() {
	openAI := llmrate.ModelConfig[string]{
		ID: "gpt-5.6-sol",
		Limits: llmrate.Limits{
			TokensPerMinute: 500_000,
			Refill:          llmrate.Continuous.WithBurst(50 * time.Second),
			Custom: []llmrate.CustomLimit{
				{Resource: llmrate.Requests, Per: time.Minute, Max: 500, Refill: llmrate.Continuous.WithBurst(time.Second)},
			},
		},
	}
	st := inForce(openAI.Limits)
	fmt.Println("tokens at once:", st.TokensPerMinute.Limit)
	fmt.Println("requests at once:", st.Custom[0].Limit)
	// Output:
	// tokens at once: 416666
	// requests at once: 8
}

// Anthropic limits input and output apart, and does not count what it reads from its cache.
func ExampleModelConfig_anthropic() {
	anthropic := llmrate.ModelConfig[string]{
		ID: "sonnet",
		Limits: llmrate.Limits{
			InputTokensPerMinute:  2_000_000,
			OutputTokensPerMinute: 400_000,
			Refill:                llmrate.Continuous.WithBurst(50 * time.Second),
			Custom: []llmrate.CustomLimit{
				{Resource: llmrate.Requests, Per: time.Minute, Max: 1_000, Refill: llmrate.Continuous.WithBurst(time.Second)},
			},
		},
	}
	chat := llmrate.JobType[string]{EstimatedInputTokens: 4_500, EstimatedOutputTokens: 800}

	st := inForce(anthropic.Limits)
	fmt.Println("jobs at once, by input:", st.InputTokensPerMinute.Limit/chat.EstimatedInputTokens)
	fmt.Println("jobs at once, by output:", st.OutputTokensPerMinute.Limit/chat.EstimatedOutputTokens)
	fmt.Println("jobs at once, by requests:", st.Custom[0].Limit)
	// Output:
	// jobs at once, by input: 370
	// jobs at once, by output: 416
	// jobs at once, by requests: 16
}

// Gemini's tokens per minute are input only.
func ExampleModelConfig_gemini() {
	gemini := llmrate.ModelConfig[string]{
		ID:     "gemini-2.5-flash",
		Limits: llmrate.Limits{RequestsPerMinute: 1_000, TokensPerMinute: 1_000_000},
		CountTokens: func(u llmrate.Usage) int64 {
			return u.InputTokens + u.CachedTokens
		},
	}
	summary := llmrate.JobType[string]{EstimatedInputTokens: 20_000, EstimatedOutputTokens: 8_000}

	estimate := llmrate.Usage{InputTokens: summary.EstimatedInputTokens, OutputTokens: summary.EstimatedOutputTokens}
	fmt.Println("counted:", gemini.CountTokens(estimate))
	// Output: counted: 20000
}

// Azure counts tokens in minutes and requests in slices of ten seconds, and is not known to give back what a request
// reserved and did not use: so the estimate is charged as the usage.
func ExampleModelConfig_azure() {
	azure := llmrate.ModelConfig[string]{
		ID: "my-gpt-4o-deployment",
		Limits: llmrate.Limits{
			TokensPerMinute: 300_000,
			Custom: []llmrate.CustomLimit{
				{Resource: llmrate.Requests, Per: 10 * time.Second, Max: 300},
			},
		},
	}

	ctx := context.Background()
	limiter, err := llmrate.New(ctx, llmrate.Config[string]{
		Models:   []llmrate.ModelConfig[string]{azure},
		JobTypes: map[string]llmrate.JobType[string]{"chat": {EstimatedInputTokens: 1_500, EstimatedOutputTokens: 500}},
	})
	if err != nil {
		log.Fatal(err)
	}
	defer limiter.Close(ctx)

	res, err := limiter.Run(ctx, "chat", func(ctx context.Context, a llmrate.Attempt[string]) (llmrate.Usage, error) {
		if _, err := call(ctx, a.Model, "Why is the sky blue?"); err != nil {
			return llmrate.Usage{}, err
		}
		return a.Estimate, nil
	})
	fmt.Println(res.Usage.TotalTokens(), err)
	// Output: 2000 <nil>
}

// OpenAI reports cached tokens inside prompt_tokens, Anthropic beside input_tokens.
func ExampleUsage() {
	var openAI struct{ PromptTokens, CachedTokens, CompletionTokens int64 }
	openAI.PromptTokens, openAI.CachedTokens, openAI.CompletionTokens = 1_200, 1_000, 300
	fmt.Printf("%+v\n", llmrate.Usage{
		Requests:     1,
		InputTokens:  openAI.PromptTokens - openAI.CachedTokens,
		CachedTokens: openAI.CachedTokens,
		OutputTokens: openAI.CompletionTokens,
	})

	var anthropic struct{ InputTokens, CacheCreationInputTokens, CacheReadInputTokens, OutputTokens int64 }
	anthropic.InputTokens, anthropic.CacheReadInputTokens, anthropic.OutputTokens = 200, 1_000, 300
	fmt.Printf("%+v\n", llmrate.Usage{
		Requests:     1,
		InputTokens:  anthropic.InputTokens + anthropic.CacheCreationInputTokens,
		CachedTokens: anthropic.CacheReadInputTokens,
		OutputTokens: anthropic.OutputTokens,
	})
	// Output:
	// {Requests:1 InputTokens:200 CachedTokens:1000 OutputTokens:300}
	// {Requests:1 InputTokens:200 CachedTokens:1000 OutputTokens:300}
}

func ExamplePricing_Cost() {
	price := llmrate.Pricing{Input: 1.25, Cached: 0.125, Output: 10} // USD per million tokens
	used := llmrate.Usage{Requests: 1, InputTokens: 200_000, CachedTokens: 1_000_000, OutputTokens: 30_000}
	fmt.Printf("$%.3f\n", price.Cost(used))
	// Output: $0.675
}

// Job types share every model by their ratios, so that none starves the others.
func ExampleJobType() {
	ctx := context.Background()
	limiter, err := llmrate.New(ctx, llmrate.Config[string]{
		Models: []llmrate.ModelConfig[string]{{ID: "large", Limits: llmrate.Limits{MaxConcurrent: 10}}},
		JobTypes: map[string]llmrate.JobType[string]{
			"batch": {EstimatedTokens: 10_000, Ratio: 0.6, FixedRatio: true},
			"chat":  {EstimatedTokens: 2_000, Ratio: 0.4, FixedRatio: true},
		},
	})
	if err != nil {
		log.Fatal(err)
	}
	defer limiter.Close(ctx)

	for _, jobType := range []string{"batch", "chat"} {
		started := 0
		for {
			r, err := limiter.TryAcquire(ctx, jobType)
			if err != nil {
				break
			}
			defer r.Release()
			started++
		}
		fmt.Println(jobType, started)
	}
	// Output:
	// batch 6
	// chat 4
}

// Jobs that hold much memory, for instance images or long documents, are kept within a budget whatever the models allow.
func ExampleMemoryConfig() {
	ctx := context.Background()
	limiter, err := llmrate.New(ctx, llmrate.Config[string]{
		Models:   []llmrate.ModelConfig[string]{{ID: "large", Limits: llmrate.Limits{MaxConcurrent: 50}}},
		JobTypes: map[string]llmrate.JobType[string]{"scan": {EstimatedMemory: 100 << 20}},
		Memory:   llmrate.MemoryConfig{Limit: 1 << 30, Share: 0.5}, // leave Limit out to have it detected
	})
	if err != nil {
		log.Fatal(err)
	}
	defer limiter.Close(ctx)

	started := 0
	for {
		r, err := limiter.TryAcquire(ctx, "scan")
		if err != nil {
			break
		}
		defer r.Release()
		started++
	}
	fmt.Println(started)
	// Output: 5
}

// inForce shows a model's limits as a limiter reports them.
func inForce(limits llmrate.Limits) llmrate.ModelStats {
	ctx := context.Background()
	limiter, err := llmrate.New(ctx, llmrate.Config[string]{
		Models:   []llmrate.ModelConfig[string]{{ID: "large", Limits: limits}},
		JobTypes: map[string]llmrate.JobType[string]{"chat": {EstimatedTokens: 2_000}},
	})
	if err != nil {
		log.Fatal(err)
	}
	defer limiter.Close(ctx)
	return limiter.Stats().Models["large"]
}
