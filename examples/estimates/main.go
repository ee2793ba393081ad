// Command estimates reserves for each call what that call can use, by its prompt's length, instead of one number for all. More
// calls can then run at the same time, and none can use more than it reserved.
package main

import (
	"context"
	"fmt"
	"io"
	"net/http/httptest"
	"os"
	"strings"

	"github.com/llmrate/llmrate"
	"github.com/llmrate/llmrate/examples/internal/provider"
	"github.com/openai/openai-go/v3"
	"github.com/openai/openai-go/v3/option"
)

const maxOutput = 200 // tokens

func main() {
	if err := run(context.Background(), os.Stdout); err != nil {
		fmt.Fprintln(os.Stderr, "estimates:", err)
		os.Exit(1)
	}
}

// estimate is the most that a prompt can use. Four bytes are about one token of English, code or Chinese, without a tokenizer;
// JSON and numbers have shorter tokens. The output is bounded by the request itself.
func estimate(prompt string) llmrate.Usage {
	return llmrate.Usage{Requests: 1, InputTokens: int64(len(prompt))/4 + 1, OutputTokens: maxOutput}
}

func run(ctx context.Context, out io.Writer) error {
	// A provider on this machine. For the real one, leave out these lines and the base URL.
	srv := httptest.NewServer(provider.New(provider.Config{Models: []provider.Model{{Name: "gpt-5"}}}))
	defer srv.Close()
	client := openai.NewClient(
		option.WithBaseURL(srv.URL+"/v1"), option.WithAPIKey("none"),
		option.WithMaxRetries(0), // a retry would be a request without a reservation
	)

	limiter, err := llmrate.New(ctx, llmrate.Config[openai.ChatModel]{
		Models: []llmrate.ModelConfig[openai.ChatModel]{
			{ID: "gpt-5", Limits: llmrate.Limits{TokensPerMinute: 30_000}, Pricing: llmrate.Pricing{Input: 1.25, Cached: 0.125, Output: 10}},
		},
		JobTypes: map[string]llmrate.JobType[openai.ChatModel]{"summary": {EstimatedTokens: 5_000}}, // for calls without an estimate
	})
	if err != nil {
		return err
	}
	defer limiter.Close(ctx)

	for _, words := range []int{10, 200, 2_000} {
		prompt := "Summarise: " + strings.Repeat("word ", words)
		res, err := limiter.Run(ctx, "summary", func(ctx context.Context, a llmrate.Attempt[openai.ChatModel]) (llmrate.Usage, error) {
			resp, err := client.Chat.Completions.New(ctx, openai.ChatCompletionNewParams{
				Model:               a.Model,
				Messages:            []openai.ChatCompletionMessageParamUnion{openai.UserMessage(prompt)},
				MaxCompletionTokens: openai.Int(a.Estimate.OutputTokens),
			})
			if err != nil {
				return llmrate.Usage{}, err
			}
			return llmrate.Usage{Requests: 1, InputTokens: resp.Usage.PromptTokens, OutputTokens: resp.Usage.CompletionTokens}, nil
		}, llmrate.WithEstimate(estimate(prompt)))
		if err != nil {
			return err
		}
		fmt.Fprintf(out, "%5d words: reserved %4d tokens, used %4d, cost $%.4f\n",
			words, estimate(prompt).TotalTokens(), res.Usage.TotalTokens(), res.Cost)
	}
	return nil
}
