// Command streaming holds a reservation while a reply streams in, and settles it with the usage in the last chunk.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http/httptest"
	"os"
	"time"

	"github.com/llmrate/llmrate"
	"github.com/llmrate/llmrate/examples/internal/provider"
	"github.com/openai/openai-go/v3"
	"github.com/openai/openai-go/v3/option"
)

func main() {
	if err := run(context.Background(), os.Stdout); err != nil {
		fmt.Fprintln(os.Stderr, "streaming:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, out io.Writer) error {
	// A provider on this machine. For the real one, leave out these lines and the base URL.
	srv := httptest.NewServer(provider.New(provider.Config{Models: []provider.Model{{Name: "gpt-5"}}, PerToken: 5 * time.Millisecond}))
	defer srv.Close()
	client := openai.NewClient(
		option.WithBaseURL(srv.URL+"/v1"), option.WithAPIKey("none"),
		option.WithMaxRetries(0), // a retry would be a request without a reservation
	)

	limiter, err := llmrate.New(ctx, llmrate.Config[openai.ChatModel]{
		Models:   []llmrate.ModelConfig[openai.ChatModel]{{ID: "gpt-5", Limits: llmrate.Limits{RequestsPerMinute: 500, TokensPerMinute: 30_000}}},
		JobTypes: map[string]llmrate.JobType[openai.ChatModel]{"chat": {EstimatedTokens: 500}},
		OnEvent: func(_ context.Context, e llmrate.Event) {
			if e, ok := e.(llmrate.EndedEvent); ok {
				fmt.Fprintf(out, "\n\nreserved 500 tokens, used %d\n", e.Usage.TotalTokens())
			}
		},
	})
	if err != nil {
		return err
	}
	defer limiter.Close(ctx)

	return reply(ctx, limiter, client, "Why is the sky blue?", out)
}

func reply(ctx context.Context, limiter *llmrate.Limiter[openai.ChatModel], client openai.Client, prompt string, out io.Writer) error {
	r, err := limiter.Acquire(ctx, "chat")
	if err != nil {
		return err
	}
	defer r.Release() // after Settle it does nothing; if the stream breaks, the estimate stays charged

	stream := client.Chat.Completions.NewStreaming(ctx, openai.ChatCompletionNewParams{
		Model:               r.Model(),
		Messages:            []openai.ChatCompletionMessageParamUnion{openai.UserMessage(prompt)},
		MaxCompletionTokens: openai.Int(100),
		StreamOptions:       openai.ChatCompletionStreamOptionsParam{IncludeUsage: openai.Bool(true)},
	})
	defer stream.Close()
	var usage openai.CompletionUsage
	for stream.Next() {
		chunk := stream.Current()
		for _, choice := range chunk.Choices {
			fmt.Fprint(out, choice.Delta.Content)
		}
		usage = chunk.Usage // zero in all chunks but the last, which has no choices
	}
	if err := stream.Err(); err != nil {
		return err
	}
	if usage.TotalTokens == 0 {
		return errors.New("the stream ended without usage") // settling with nothing would give everything back
	}
	cached := usage.PromptTokensDetails.CachedTokens
	return r.Settle(llmrate.Usage{
		Requests:     1,
		InputTokens:  usage.PromptTokens - cached, // OpenAI counts cached tokens inside the prompt
		CachedTokens: cached,
		OutputTokens: usage.CompletionTokens,
	})
}
