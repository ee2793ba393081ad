package llmrate_test

import (
	"context"
	"errors"
	"fmt"
	"log"
	"strings"
	"time"

	"github.com/llmrate/llmrate"
)

// Models can be strings or, as here, a string type of your own: then the compiler refuses a constant of another type.
func ExampleNew() {
	type Model string
	const (
		Large Model = "large"
		Small Model = "small"
	)
	limiter, err := llmrate.New(context.Background(), llmrate.Config[Model]{
		Models: []llmrate.ModelConfig[Model]{ // in order of preference
			{
				ID:      Large,
				Limits:  llmrate.Limits{RequestsPerMinute: 500, TokensPerMinute: 500_000},
				Pricing: llmrate.Pricing{Input: 1.25, Cached: 0.125, Output: 10}, // USD per million tokens
			},
			{ID: Small, Limits: llmrate.Limits{MaxConcurrent: 200}},
		},
		JobTypes: map[string]llmrate.JobType[Model]{
			"summary": {EstimatedTokens: 10_000, Ratio: 0.3},
			"chat":    {EstimatedTokens: 2_000, MaxWait: map[Model]time.Duration{Large: 0}}, // gets the other 0.7
		},
	})
	if err != nil {
		log.Fatal(err)
	}
	defer limiter.Close(context.Background())

	model, ok := limiter.Available("chat")
	fmt.Println(model, ok)
	// Output: large true
}

func ExampleLimiter_Run() {
	ctx := context.Background()
	limiter, err := llmrate.New(ctx, llmrate.Config[string]{
		Models: []llmrate.ModelConfig[string]{{
			ID:      "large",
			Limits:  llmrate.Limits{RequestsPerMinute: 500, TokensPerMinute: 500_000},
			Pricing: llmrate.Pricing{Input: 2, Output: 10},
		}},
		JobTypes: map[string]llmrate.JobType[string]{"chat": {EstimatedTokens: 2_000}},
	})
	if err != nil {
		log.Fatal(err)
	}
	defer limiter.Close(ctx)

	var answer string
	res, err := limiter.Run(ctx, "chat", func(ctx context.Context, a llmrate.Attempt[string]) (llmrate.Usage, error) {
		resp, err := call(ctx, a.Model, "Why is the sky blue?")
		if err != nil {
			return llmrate.Usage{}, err // what it used is unknown: the estimate stays charged
		}
		answer = resp.Text
		return llmrate.Usage{Requests: 1, InputTokens: resp.InputTokens, OutputTokens: resp.OutputTokens}, nil
	})
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println(answer)
	fmt.Printf("%s: %d tokens, $%.4f\n", res.Model, res.Usage.TotalTokens(), res.Cost)
	// Output:
	// Rayleigh scattering.
	// large: 1500 tokens, $0.0054
}

func ExampleDo() {
	ctx := context.Background()
	limiter, err := llmrate.New(ctx, llmrate.Config[string]{
		Models:   []llmrate.ModelConfig[string]{{ID: "large", Limits: llmrate.Limits{TokensPerMinute: 500_000}}},
		JobTypes: map[string]llmrate.JobType[string]{"chat": {EstimatedTokens: 2_000}},
	})
	if err != nil {
		log.Fatal(err)
	}
	defer limiter.Close(ctx)

	answer, res, err := llmrate.Do(ctx, limiter, "chat",
		func(ctx context.Context, a llmrate.Attempt[string]) (string, llmrate.Usage, error) {
			resp, err := call(ctx, a.Model, "Why is the sky blue?")
			if err != nil {
				return "", llmrate.Usage{}, err
			}
			return resp.Text, llmrate.Usage{Requests: 1, InputTokens: resp.InputTokens, OutputTokens: resp.OutputTokens}, nil
		})
	fmt.Println(answer, res.Usage.TotalTokens(), err)
	// Output: Rayleigh scattering. 1500 <nil>
}

// A stream outlives the function that opens it: hold a reservation until it ends.
func ExampleLimiter_Acquire() {
	ctx := context.Background()
	limiter, err := llmrate.New(ctx, llmrate.Config[string]{
		Models:   []llmrate.ModelConfig[string]{{ID: "large", Limits: llmrate.Limits{MaxConcurrent: 1}}},
		JobTypes: map[string]llmrate.JobType[string]{"chat": {EstimatedInputTokens: 500, EstimatedOutputTokens: 1_500}},
	})
	if err != nil {
		log.Fatal(err)
	}
	defer limiter.Close(ctx)

	read := func() error {
		r, err := limiter.Acquire(ctx, "chat")
		if err != nil {
			return err
		}
		defer r.Release() // on every early return: usage unknown, so the estimate stays charged; nothing after Settle

		stream := open(ctx, r.Model(), "Why is the sky blue?")
		for stream.Next() {
			fmt.Print(stream.Text())
		}
		if err := stream.Err(); err != nil {
			return err
		}
		used := stream.Usage() // comes with the last event
		return r.Settle(llmrate.Usage{Requests: 1, InputTokens: used.Input, OutputTokens: used.Output})
	}
	if err := read(); err != nil {
		log.Fatal(err)
	}
	// Output: Rayleigh scattering.
}

func ExampleReservation_Settle() {
	ctx := context.Background()
	limiter, err := llmrate.New(ctx, llmrate.Config[string]{
		Models:   []llmrate.ModelConfig[string]{{ID: "large", Limits: llmrate.Limits{TokensPerMinute: 10_000}}},
		JobTypes: map[string]llmrate.JobType[string]{"chat": {EstimatedTokens: 8_000}},
	})
	if err != nil {
		log.Fatal(err)
	}
	defer limiter.Close(ctx)

	r, err := limiter.Acquire(ctx, "chat")
	if err != nil {
		log.Fatal(err)
	}
	err = r.Settle(llmrate.Usage{Requests: 1, InputTokens: 1_200, OutputTokens: 300})
	fmt.Println(err)

	// 6,500 of the 8,000 tokens have come back, so that a second job fits into the same minute.
	_, ok := limiter.Available("chat")
	fmt.Println(ok)

	// A reservation ends once. A second end changes nothing.
	err = r.Settle(llmrate.Usage{Requests: 1, InputTokens: 1_200, OutputTokens: 300})
	fmt.Println(errors.Is(err, llmrate.ErrSettled))
	// Output:
	// <nil>
	// true
	// true
}

// A stream breaks after it has reported its input: settle what is known, and keep the estimate of the rest.
func ExampleReservation_Settle_partly() {
	ctx := context.Background()
	limiter, err := llmrate.New(ctx, llmrate.Config[string]{
		Models:   []llmrate.ModelConfig[string]{{ID: "large", Limits: llmrate.Limits{TokensPerMinute: 500_000}}},
		JobTypes: map[string]llmrate.JobType[string]{"chat": {EstimatedInputTokens: 2_000, EstimatedOutputTokens: 800}},
		OnEvent: func(_ context.Context, e llmrate.Event) {
			if e, ok := e.(llmrate.EndedEvent); ok {
				fmt.Printf("%+v\n", e.Usage)
			}
		},
	})
	if err != nil {
		log.Fatal(err)
	}
	defer limiter.Close(ctx)

	r, err := limiter.Acquire(ctx, "chat")
	if err != nil {
		log.Fatal(err)
	}
	defer r.Release()

	inputTokens := int64(1_200) // from the first event of the stream
	err = r.Settle(llmrate.Usage{Requests: 1, InputTokens: inputTokens, OutputTokens: r.Estimate().OutputTokens})
	if err != nil {
		log.Fatal(err)
	}
	// Output: {Requests:1 InputTokens:1200 CachedTokens:0 OutputTokens:800}
}

func ExampleReservation_Release() {
	ctx := context.Background()
	limiter, err := llmrate.New(ctx, llmrate.Config[string]{
		Models:   []llmrate.ModelConfig[string]{{ID: "large", Limits: llmrate.Limits{MaxConcurrent: 1}}},
		JobTypes: map[string]llmrate.JobType[string]{"chat": {EstimatedTokens: 2_000}},
	})
	if err != nil {
		log.Fatal(err)
	}
	defer limiter.Close(ctx)

	r, err := limiter.Acquire(ctx, "chat")
	if err != nil {
		log.Fatal(err)
	}
	_, ok := limiter.Available("chat")
	fmt.Println("while it runs:", ok)

	// What was used is unknown: token and request limits keep the estimate, the concurrency slot comes back.
	r.Release()
	_, ok = limiter.Available("chat")
	fmt.Println("after Release:", ok)
	// Output:
	// while it runs: false
	// after Release: true
}

func ExampleLimiter_TryAcquire() {
	ctx := context.Background()
	limiter, err := llmrate.New(ctx, llmrate.Config[string]{
		Models:   []llmrate.ModelConfig[string]{{ID: "large", Limits: llmrate.Limits{MaxConcurrent: 2}}},
		JobTypes: map[string]llmrate.JobType[string]{"embed": {EstimatedTokens: 500}},
	})
	if err != nil {
		log.Fatal(err)
	}
	defer limiter.Close(ctx)

	for range 3 {
		r, err := limiter.TryAcquire(ctx, "embed")
		if errors.Is(err, llmrate.ErrNoCapacity) {
			fmt.Println("full: later")
			continue
		}
		if err != nil {
			log.Fatal(err)
		}
		defer r.Release()
		fmt.Println("runs on", r.Model())
	}
	// Output:
	// runs on large
	// runs on large
	// full: later
}

func ExampleLimiter_Available() {
	ctx := context.Background()
	limiter, err := llmrate.New(ctx, llmrate.Config[string]{
		Models: []llmrate.ModelConfig[string]{
			{ID: "large", Limits: llmrate.Limits{MaxConcurrent: 1}},
			{ID: "small", Limits: llmrate.Limits{MaxConcurrent: 1}},
		},
		JobTypes: map[string]llmrate.JobType[string]{"chat": {EstimatedTokens: 2_000}},
	})
	if err != nil {
		log.Fatal(err)
	}
	defer limiter.Close(ctx)

	for {
		model, ok := limiter.Available("chat")
		if !ok {
			break
		}
		fmt.Println("next on", model)
		r, err := limiter.TryAcquire(ctx, "chat")
		if err != nil {
			log.Fatal(err)
		}
		defer r.Release()
	}
	fmt.Println("all full")
	// Output:
	// next on large
	// next on small
	// all full
}

func ExampleLimiter_Close() {
	ctx := context.Background()
	limiter, err := llmrate.New(ctx, llmrate.Config[string]{
		Models:   []llmrate.ModelConfig[string]{{ID: "large", Limits: llmrate.Limits{MaxConcurrent: 10}}},
		JobTypes: map[string]llmrate.JobType[string]{"chat": {EstimatedTokens: 2_000}},
	})
	if err != nil {
		log.Fatal(err)
	}
	r, err := limiter.Acquire(ctx, "chat")
	if err != nil {
		log.Fatal(err)
	}

	// Close waits for running jobs, but no longer than its context allows.
	soon, cancel := context.WithTimeout(ctx, 10*time.Millisecond)
	defer cancel()
	fmt.Println("still running:", limiter.Close(soon))

	// From the first Close on, nothing new starts.
	_, err = limiter.Acquire(ctx, "chat")
	fmt.Println(err)

	r.Release()
	fmt.Println("all done:", limiter.Close(ctx))
	// Output:
	// still running: context deadline exceeded
	// llmrate: limiter is closed
	// all done: <nil>
}

// Reject ends a job whose usage is known although it failed. Here the provider has refused the prompt: that has cost a
// request and the input, so the rest of the estimate goes back to the limits.
func ExampleReject() {
	ctx := context.Background()
	limiter, err := llmrate.New(ctx, llmrate.Config[string]{
		Models: []llmrate.ModelConfig[string]{
			{ID: "large", Limits: llmrate.Limits{TokensPerMinute: 500_000}},
			{ID: "small", Limits: llmrate.Limits{TokensPerMinute: 500_000}},
		},
		JobTypes: map[string]llmrate.JobType[string]{"chat": {EstimatedTokens: 2_000}},
	})
	if err != nil {
		log.Fatal(err)
	}
	defer limiter.Close(ctx)

	errContentFilter := errors.New("content filter")
	res, err := limiter.Run(ctx, "chat", func(context.Context, llmrate.Attempt[string]) (llmrate.Usage, error) {
		return llmrate.Usage{}, llmrate.Reject(errContentFilter, llmrate.Usage{Requests: 1, InputTokens: 900})
	})
	fmt.Println(err, errors.Is(err, errContentFilter))
	fmt.Println(len(res.Attempts), res.Usage.InputTokens)
	// Output:
	// content filter true
	// 1 900
}

// Delegate sends the job on to the next model. Here the first is overloaded; the provider counts the request all the
// same.
func ExampleDelegate() {
	ctx := context.Background()
	limiter, err := llmrate.New(ctx, llmrate.Config[string]{
		Models: []llmrate.ModelConfig[string]{
			{ID: "large", Limits: llmrate.Limits{TokensPerMinute: 500_000}},
			{ID: "small", Limits: llmrate.Limits{TokensPerMinute: 500_000}},
		},
		JobTypes: map[string]llmrate.JobType[string]{"chat": {EstimatedTokens: 2_000}},
	})
	if err != nil {
		log.Fatal(err)
	}
	defer limiter.Close(ctx)

	res, err := limiter.Run(ctx, "chat", func(_ context.Context, a llmrate.Attempt[string]) (llmrate.Usage, error) {
		if a.Model == "large" {
			return llmrate.Usage{}, llmrate.Delegate(errors.New("overloaded"), llmrate.Usage{Requests: 1})
		}
		return llmrate.Usage{Requests: 1, InputTokens: 1_200, OutputTokens: 300}, nil
	})
	if err != nil {
		log.Fatal(err)
	}
	for _, a := range res.Attempts {
		fmt.Println(a.Model, a.Usage.TotalTokens(), a.Err)
	}
	// Output:
	// large 0 overloaded
	// small 1500 <nil>
}

// What a provider's error means for the limits is for the caller to say, once for all calls.
func ExampleDelegate_byStatus() {
	sorted := func(err error) error {
		apiErr, ok := errors.AsType[*apiError](err)
		switch {
		case !ok: // a timeout, a broken connection: it may have used anything
			return err
		case apiErr.Code == "insufficient_quota": // looks like a rate limit, but no model and no wait will help
			return llmrate.Reject(err, llmrate.Usage{Requests: 1})
		case apiErr.Status == 429, apiErr.Status == 503, apiErr.Status == 529: // refused or overloaded: try the next model
			return llmrate.Delegate(err, llmrate.Usage{Requests: 1})
		case apiErr.Status >= 400 && apiErr.Status < 500: // a bad request is bad on every model
			return llmrate.Reject(err, llmrate.Usage{Requests: 1})
		}
		return err
	}

	ctx := context.Background()
	limiter, err := llmrate.New(ctx, llmrate.Config[string]{
		Models:   []llmrate.ModelConfig[string]{{ID: "large"}, {ID: "small"}},
		JobTypes: map[string]llmrate.JobType[string]{"chat": {EstimatedTokens: 2_000}},
	})
	if err != nil {
		log.Fatal(err)
	}
	defer limiter.Close(ctx)

	for _, status := range []int{429, 400, 500} {
		res, _ := limiter.Run(ctx, "chat", func(context.Context, llmrate.Attempt[string]) (llmrate.Usage, error) {
			return llmrate.Usage{}, sorted(&apiError{Status: status})
		})
		fmt.Println(status, "attempts:", len(res.Attempts), "usage known:", res.Attempts[0].UsageKnown)
	}
	// Output:
	// 429 attempts: 2 usage known: true
	// 400 attempts: 1 usage known: true
	// 500 attempts: 1 usage known: false
}

// Every model is tried at most once. If all delegate, Run returns all their errors, joined.
func ExampleDelegate_everywhere() {
	ctx := context.Background()
	limiter, err := llmrate.New(ctx, llmrate.Config[string]{
		Models:   []llmrate.ModelConfig[string]{{ID: "large"}, {ID: "small"}}, // without limits
		JobTypes: map[string]llmrate.JobType[string]{"chat": {EstimatedTokens: 2_000}},
	})
	if err != nil {
		log.Fatal(err)
	}
	defer limiter.Close(ctx)

	errOverloaded := errors.New("overloaded")
	_, err = limiter.Run(ctx, "chat", func(context.Context, llmrate.Attempt[string]) (llmrate.Usage, error) {
		return llmrate.Usage{}, llmrate.Delegate(errOverloaded, llmrate.Usage{Requests: 1})
	})
	fmt.Println(err)
	fmt.Println(errors.Is(err, errOverloaded))
	// Output:
	// llmrate: large: overloaded
	// llmrate: small: overloaded
	// true
}

// The estimate of a call replaces that of its job type as a whole: give input and output.
func ExampleWithEstimate() {
	ctx := context.Background()
	limiter, err := llmrate.New(ctx, llmrate.Config[string]{
		Models:   []llmrate.ModelConfig[string]{{ID: "large", Limits: llmrate.Limits{TokensPerMinute: 500_000}}},
		JobTypes: map[string]llmrate.JobType[string]{"chat": {EstimatedTokens: 2_000}},
	})
	if err != nil {
		log.Fatal(err)
	}
	defer limiter.Close(ctx)

	prompt, maxTokens := strings.Repeat("All work and no play. ", 1_000), int64(800)

	// A quarter of the prompt's bytes is a fair guess of its tokens.
	estimate := llmrate.Usage{InputTokens: int64(len(prompt)) / 4, OutputTokens: maxTokens}
	r, err := limiter.Acquire(ctx, "chat", llmrate.WithEstimate(estimate))
	if err != nil {
		log.Fatal(err)
	}
	defer r.Release()
	fmt.Printf("%+v\n", r.Estimate())
	// Output: {Requests:1 InputTokens:5500 CachedTokens:0 OutputTokens:800}
}

// A call may name the models it accepts, and their order.
func ExampleWithModels() {
	ctx := context.Background()
	limiter, err := llmrate.New(ctx, llmrate.Config[string]{
		Models:   []llmrate.ModelConfig[string]{{ID: "large"}, {ID: "medium"}, {ID: "small"}},
		JobTypes: map[string]llmrate.JobType[string]{"chat": {EstimatedTokens: 2_000}},
	})
	if err != nil {
		log.Fatal(err)
	}
	defer limiter.Close(ctx)

	r, err := limiter.Acquire(ctx, "chat", llmrate.WithModels("small", "medium"))
	if err != nil {
		log.Fatal(err)
	}
	defer r.Release()
	fmt.Println(r.Model())

	_, err = limiter.Acquire(ctx, "chat", llmrate.WithModels("huge"))
	fmt.Println(err)
	// Output:
	// small
	// llmrate: unknown model "huge"; the models are "large", "medium", "small"
}

func ExampleWithJobID() {
	ctx := context.Background()
	limiter, err := llmrate.New(ctx, llmrate.Config[string]{
		Models:   []llmrate.ModelConfig[string]{{ID: "large"}},
		JobTypes: map[string]llmrate.JobType[string]{"chat": {EstimatedTokens: 2_000}},
		OnEvent: func(_ context.Context, e llmrate.Event) {
			if e, ok := e.(llmrate.EndedEvent); ok {
				fmt.Println("ended:", e.JobID)
			}
		},
	})
	if err != nil {
		log.Fatal(err)
	}
	defer limiter.Close(ctx)

	_, err = limiter.Run(ctx, "chat", func(_ context.Context, a llmrate.Attempt[string]) (llmrate.Usage, error) {
		fmt.Println("runs:", a.JobID)
		return llmrate.Usage{Requests: 1, InputTokens: 1_200, OutputTokens: 300}, nil
	}, llmrate.WithJobID("request-4711"))
	if err != nil {
		log.Fatal(err)
	}
	// Output:
	// runs: request-4711
	// ended: request-4711
}

// With no wait at all, a call goes straight to the first model that has room.
func ExampleWithMaxWait() {
	ctx := context.Background()
	limiter, err := llmrate.New(ctx, llmrate.Config[string]{
		Models: []llmrate.ModelConfig[string]{
			{ID: "large", Limits: llmrate.Limits{MaxConcurrent: 1}},
			{ID: "small", Limits: llmrate.Limits{MaxConcurrent: 1}},
		},
		JobTypes: map[string]llmrate.JobType[string]{"chat": {EstimatedTokens: 2_000}},
	})
	if err != nil {
		log.Fatal(err)
	}
	defer limiter.Close(ctx)

	for range 3 {
		r, err := limiter.Acquire(ctx, "chat", llmrate.WithMaxWait(0))
		if err != nil {
			fmt.Println(errors.Is(err, llmrate.ErrNoCapacity))
			continue
		}
		defer r.Release()
		fmt.Println(r.Model())
	}
	// Output:
	// large
	// small
	// true
}

// The rest of this file stands for a provider's SDK.

type response struct {
	Text                      string
	InputTokens, OutputTokens int64
}

func call(ctx context.Context, model, prompt string) (*response, error) {
	return &response{Text: "Rayleigh scattering.", InputTokens: 1_200, OutputTokens: 300}, nil
}

type apiError struct {
	Status int
	Code   string
}

func (e *apiError) Error() string { return fmt.Sprintf("status %d %s", e.Status, e.Code) }

type textStream struct{ words []string }

func open(ctx context.Context, model, prompt string) *textStream {
	return &textStream{words: []string{"", "Rayleigh ", "scattering."}}
}

func (s *textStream) Next() bool {
	s.words = s.words[1:]
	return len(s.words) > 0
}

func (s *textStream) Text() string { return s.words[0] }
func (s *textStream) Err() error   { return nil }

func (s *textStream) Usage() struct{ Input, Output int64 } {
	return struct{ Input, Output int64 }{1_200, 300}
}
