package main

import (
	"context"
	"time"

	"github.com/llmrate/llmrate"
	"github.com/llmrate/llmrate/examples/internal/provider"
	"github.com/openai/openai-go/v3/responses"
)

// newLimiter tells llmrate the provider's limits and who may use how much of them.
func newLimiter(ctx context.Context) (*llmrate.Limiter[string], error) {
	return llmrate.New(ctx, llmrate.Config[string]{
		Models: []llmrate.ModelConfig[string]{
			{ID: preferred, Limits: limits(models[0]), Pricing: pricing[preferred], MinCapacity: 40},
			{ID: fallback, Limits: limits(models[1]), Pricing: pricing[fallback], MinCapacity: 40},
		},
		JobTypes: map[string]llmrate.JobType[string]{
			// Somebody sits and waits for a chat. It would rather have the small model at once than the large one later, and
			// while both wait it is served first up to its ratio. MinCapacity lets either use what the other leaves.
			"chat": {
				EstimatedTokens: 200, Ratio: 0.4, FixedRatio: true,
				MaxWait: map[string]time.Duration{preferred: 250 * time.Millisecond, fallback: time.Hour},
			},
			"summary": {
				EstimatedTokens: 700,
				MaxWait:         map[string]time.Duration{preferred: 500 * time.Millisecond, fallback: time.Hour},
			},
		},
	})
}

// limits are the provider's own, with half the burst, and few calls at a time. That makes a 429 impossible, not just rare.
//
// Both sides keep token buckets that refill at the same rate. In any time t the limiter lets go burst + rate × t at most, but a
// request reaches the provider a moment later. So what arrives in t is that and whatever was under way before: at most
// MaxConcurrent calls. As long as these fit into the difference of the bursts, the provider has room, however slow the
// way is. Tokens that a call did not use come back to the provider's bucket first: it settles a call before it answers.
func limits(m provider.Model) llmrate.Limits {
	const largest = 1_000 // tokens that any one call may use
	half := llmrate.Continuous.WithBurst(window / 2)
	return llmrate.Limits{
		MaxConcurrent: m.Tokens.Max / 2 / largest,
		Custom: []llmrate.CustomLimit{
			{Resource: llmrate.Requests, Per: m.Requests.Per, Max: m.Requests.Max, Refill: half},
			{Resource: llmrate.Tokens, Per: m.Tokens.Per, Max: m.Tokens.Max, Refill: half},
		},
	}
}

// limited calls the provider through llmrate. The SDK given to it must not retry by itself: a retry is a request that
// nobody reserved quota for.
func limited(limiter *llmrate.Limiter[string], sdk responses.ResponseService) caller {
	return func(ctx context.Context, j job, tried func()) outcome {
		estimate := llmrate.Usage{Requests: 1, InputTokens: j.inputTokens(), OutputTokens: j.maxTokens()}
		res, err := limiter.Run(ctx, j.Kind, func(ctx context.Context, a llmrate.Attempt[string]) (llmrate.Usage, error) {
			return send(ctx, sdk, a.Model, j, tried)
		}, llmrate.WithEstimate(estimate))
		return outcome{cost: res.Cost, err: err, escalated: res.Model == fallback}
	}
}
