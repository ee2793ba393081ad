package main

import (
	"context"
	"net/http"
	"sync"
	"sync/atomic"
	"time"

	"github.com/llmrate/llmrate"
	"github.com/llmrate/llmrate/examples/internal/provider"
	"github.com/openai/openai-go/v3/option"
	"github.com/openai/openai-go/v3/packages/param"
	"github.com/openai/openai-go/v3/responses"
)

// pass is one run of all jobs against a provider of its own.
type pass struct {
	name   string
	server *provider.Server
	call   caller

	sent, answered, failed atomic.Int64 // sent counts HTTP requests
	outcomes               []outcome    // complete when run returns, like wall
	wall                   time.Duration
}

// caller carries a job to the provider, one way or another. It calls tried before each HTTP request.
type caller func(ctx context.Context, j job, tried func()) outcome

// outcome is what became of one job.
type outcome struct {
	kind      string
	err       error
	waited    time.Duration // from the job's arrival to the sending of the request that was answered
	cost      float64       // USD
	escalated bool          // went on to the fallback
}

// run starts every job when it comes, each in its own goroutine, and returns when all have ended.
func (p *pass) run(ctx context.Context, jobs []job) {
	start := time.Now()
	p.outcomes = make([]outcome, len(jobs))
	var wg sync.WaitGroup
	for i, j := range jobs {
		wg.Go(func() {
			time.Sleep(j.at)
			came := time.Now()
			var last time.Time // of this job's requests
			o := p.call(ctx, j, func() {
				p.sent.Add(1)
				last = time.Now()
			})
			o.kind = j.Kind
			o.waited = last.Sub(came)
			if o.err == nil {
				p.answered.Add(1)
			} else {
				p.failed.Add(1)
			}
			p.outcomes[i] = o
		})
	}
	wg.Wait()
	p.wall = time.Since(start)
}

// send is one call through the official SDK.
//
// It uses the SDK's responses package by itself, which compiles in a third of the time. With openai.NewClient the call
// is client.Responses.New(ctx, params), and everything else is the same, retries included.
func send(ctx context.Context, sdk responses.ResponseService, model string, j job, tried func()) (llmrate.Usage, error) {
	resp, err := sdk.New(ctx,
		responses.ResponseNewParams{
			Model:           model,
			Input:           responses.ResponseNewParamsInputUnion{OfString: param.NewOpt(j.Prompt)},
			MaxOutputTokens: param.NewOpt(j.maxTokens()),
		},
		option.WithMiddleware(func(r *http.Request, next option.MiddlewareNext) (*http.Response, error) {
			tried() // runs for the SDK's own retries too
			return next(r)
		}))
	if err != nil {
		return llmrate.Usage{}, err
	}
	cached := resp.Usage.InputTokensDetails.CachedTokens
	return llmrate.Usage{
		Requests:     1,
		InputTokens:  resp.Usage.InputTokens - cached, // OpenAI counts cached tokens inside the input
		CachedTokens: cached,
		OutputTokens: resp.Usage.OutputTokens,
	}, nil
}
