package provider_test

import (
	"context"
	"errors"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/llmrate/llmrate/examples/internal/provider"
	"github.com/openai/openai-go/v3"
	"github.com/openai/openai-go/v3/option"
	"github.com/openai/openai-go/v3/responses"
)

// The official client is what says whether the server speaks the protocol.
func TestOfficialClient(t *testing.T) {
	server := provider.New(provider.Config{Models: []provider.Model{
		{Name: "gpt-5", Requests: provider.Limit{Max: 2, Per: 24 * time.Hour, Continuous: true}},
		{Name: "gpt-5-mini"},
	}})
	srv := httptest.NewServer(server)
	defer srv.Close()
	client := openai.NewClient(option.WithBaseURL(srv.URL+"/v1"), option.WithAPIKey("none"), option.WithHTTPClient(srv.Client()))
	params := func(model string) openai.ChatCompletionNewParams {
		return openai.ChatCompletionNewParams{
			Model:               model,
			Messages:            []openai.ChatCompletionMessageParamUnion{openai.UserMessage("What colour is the sky?")},
			MaxCompletionTokens: openai.Int(100),
		}
	}

	whole, err := client.Chat.Completions.New(t.Context(), params("gpt-5-mini"))
	if err != nil {
		t.Fatal(err)
	}
	if u := whole.Usage; u.PromptTokens != 6 || u.CompletionTokens < 30 || u.TotalTokens != u.PromptTokens+u.CompletionTokens {
		t.Errorf("usage %+v", u)
	}
	if text := whole.Choices[0].Message.Content; int64(len(text)) != 4*whole.Usage.CompletionTokens {
		t.Errorf("%d bytes of text for %d tokens", len(text), whole.Usage.CompletionTokens)
	}

	streamed := params("gpt-5-mini")
	streamed.StreamOptions.IncludeUsage = openai.Bool(true)
	stream := client.Chat.Completions.NewStreaming(t.Context(), streamed)
	var text strings.Builder
	var usage openai.CompletionUsage
	for stream.Next() {
		chunk := stream.Current()
		for _, c := range chunk.Choices {
			text.WriteString(c.Delta.Content)
		}
		if len(chunk.Choices) == 0 {
			usage = chunk.Usage
		}
	}
	if err := stream.Err(); err != nil {
		t.Fatal(err)
	}
	if text.String() != whole.Choices[0].Message.Content || usage.TotalTokens != whole.Usage.TotalTokens {
		t.Errorf("streamed %q, usage %+v; whole %q, usage %+v", text.String(), usage, whole.Choices[0].Message.Content, whole.Usage)
	}

	response, err := client.Responses.New(t.Context(), responses.ResponseNewParams{
		Model:           "gpt-5-mini",
		Input:           responses.ResponseNewParamsInputUnion{OfString: openai.String("What colour is the sky?")},
		MaxOutputTokens: openai.Int(100),
	})
	if err != nil {
		t.Fatal(err)
	}
	if u := response.Usage; response.OutputText() != text.String() || u.TotalTokens != whole.Usage.TotalTokens {
		t.Errorf("Responses: %d bytes, usage %+v", len(response.OutputText()), u)
	}

	for range 2 {
		if _, err := client.Chat.Completions.New(t.Context(), params("gpt-5")); err != nil {
			t.Fatal(err)
		}
	}
	// The wait that the server asks for is half a day: the client does not retry.
	_, err = client.Chat.Completions.New(t.Context(), params("gpt-5"))
	var apiErr *openai.Error
	if !errors.As(err, &apiErr) || apiErr.StatusCode != 429 || apiErr.Code != "rate_limit_exceeded" || apiErr.Type != "requests" {
		t.Fatalf("error %v", err)
	}
	reset, err := time.ParseDuration(apiErr.Response.Header.Get("x-ratelimit-reset-requests"))
	if err != nil || reset < 23*time.Hour || reset > 24*time.Hour {
		t.Errorf("reset %v, %v", reset, err)
	}
	if r := server.Report("gpt-5"); r.Arrived != 3 || r.Served != 2 || r.RateLimited != 1 {
		t.Errorf("report %+v", r)
	}
}

// A stream that is closed early is charged with what was produced, and its slot comes back.
func TestStreamCutShort(t *testing.T) {
	server := provider.New(provider.Config{
		Models:   []provider.Model{{Name: "gpt-5", MaxConcurrent: 1}},
		PerToken: time.Millisecond,
	})
	srv := httptest.NewServer(server)
	client := openai.NewClient(option.WithBaseURL(srv.URL+"/v1"), option.WithAPIKey("none"), option.WithHTTPClient(srv.Client()))
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	stream := client.Chat.Completions.NewStreaming(ctx, openai.ChatCompletionNewParams{
		Model:               "gpt-5",
		Messages:            []openai.ChatCompletionMessageParamUnion{openai.UserMessage("Tell me everything.")},
		MaxCompletionTokens: openai.Int(1_000_000),
	})
	if !stream.Next() {
		t.Fatal(stream.Err())
	}
	_ = stream.Close()
	srv.Close() // waits for the handler
	if r := server.Report("gpt-5"); r.Served != 1 || r.Tokens < 8 || r.Tokens > 100_000 {
		t.Errorf("report %+v", r)
	}
}
