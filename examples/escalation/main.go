// Command escalation moves calls to a second model: at once if the first has no room, and after a failed call if the caller
// says so.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"time"

	"github.com/llmrate/llmrate"
	"github.com/llmrate/llmrate/examples/internal/provider"
	"github.com/openai/openai-go/v3"
	"github.com/openai/openai-go/v3/option"
)

type Model string

const (
	GPT5     Model = "gpt-5"
	GPT5Mini Model = "gpt-5-mini"
)

func main() {
	if err := run(context.Background(), os.Stdout); err != nil {
		fmt.Fprintln(os.Stderr, "escalation:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, out io.Writer) error {
	// A provider on this machine, whose large model is overloaded. For the real one, leave out these lines and the base URL.
	srv := httptest.NewServer(provider.New(provider.Config{
		Models: []provider.Model{{Name: string(GPT5), Overloaded: true}, {Name: string(GPT5Mini)}},
	}))
	defer srv.Close()
	client := openai.NewClient(
		option.WithBaseURL(srv.URL+"/v1"), option.WithAPIKey("none"),
		option.WithMaxRetries(0), // the second model is better than a second try
	)

	limiter, err := llmrate.New(ctx, llmrate.Config[Model]{
		Models: []llmrate.ModelConfig[Model]{ // in order of preference
			{ID: GPT5, Limits: llmrate.Limits{RequestsPerMinute: 2, Refill: llmrate.Continuous}},
			{ID: GPT5Mini, Limits: llmrate.Limits{MaxConcurrent: 20}},
		},
		JobTypes: map[string]llmrate.JobType[Model]{
			"chat": {EstimatedTokens: 500, MaxWait: map[Model]time.Duration{GPT5: 0}}, // if the large model is full, do not wait for it
		},
		OnEvent: func(_ context.Context, e llmrate.Event) {
			if e, ok := e.(llmrate.EscalatedEvent); ok {
				why := "is full"
				if e.Delegated {
					why = "is overloaded"
				}
				fmt.Fprintf(out, "%s %s, on to %s\n", e.Model, why, e.NextModel)
			}
		},
	})
	if err != nil {
		return err
	}
	defer limiter.Close(ctx)

	for _, prompt := range []string{"Why is the sky blue?", "Why is the grass green?", "Why is the rose red?"} {
		_, res, err := llmrate.Do(ctx, limiter, "chat", func(ctx context.Context, a llmrate.Attempt[Model]) (string, llmrate.Usage, error) {
			return ask(ctx, client, a.Model, prompt)
		})
		if err != nil {
			return err
		}
		fmt.Fprintf(out, "%s answered after %d calls: %s\n", res.Model, len(res.Attempts), prompt)
	}
	return nil
}

func ask(ctx context.Context, client openai.Client, model Model, prompt string) (string, llmrate.Usage, error) {
	resp, err := client.Chat.Completions.New(ctx, openai.ChatCompletionNewParams{
		Model:               string(model),
		Messages:            []openai.ChatCompletionMessageParamUnion{openai.UserMessage(prompt)},
		MaxCompletionTokens: openai.Int(100),
	})
	var apiErr *openai.Error
	if errors.As(err, &apiErr) && apiErr.StatusCode == http.StatusServiceUnavailable {
		// Another model may do. The request counts, but no tokens were used: they go back.
		return "", llmrate.Usage{}, llmrate.Delegate(err, llmrate.Usage{Requests: 1})
	}
	if err != nil {
		return "", llmrate.Usage{}, err // no other model is tried, and the estimate stays charged
	}
	return resp.Choices[0].Message.Content, llmrate.Usage{
		Requests: 1, InputTokens: resp.Usage.PromptTokens, OutputTokens: resp.Usage.CompletionTokens,
	}, nil
}
