package provider

import (
	"cmp"
	"encoding/json"
	"net/http"
	"strconv"
	"strings"
	"time"
)

// request is the part that matters here of a request to either API: Chat Completions or Responses.
type request struct {
	Model               string    `json:"model"`
	Messages            []message `json:"messages"` // Chat Completions
	Input               input     `json:"input"`    // Responses
	MaxCompletionTokens int64     `json:"max_completion_tokens"`
	MaxTokens           int64     `json:"max_tokens"`        // its older name
	MaxOutputTokens     int64     `json:"max_output_tokens"` // its name in Responses
	Stream              bool      `json:"stream"`
	StreamOptions       struct {
		IncludeUsage bool `json:"include_usage"`
	} `json:"stream_options"`
}

type message struct {
	Content content `json:"content"`
}

// input is a prompt, or a list of messages.
type input []message

func (in *input) UnmarshalJSON(data []byte) error {
	if len(data) > 0 && data[0] == '[' {
		return json.Unmarshal(data, (*[]message)(in))
	}
	*in = []message{{}}
	return json.Unmarshal(data, &(*in)[0].Content)
}

// content is a text, or a list of parts of which the text counts.
type content string

func (c *content) UnmarshalJSON(data []byte) error {
	if len(data) > 0 && data[0] == '[' {
		var parts []struct {
			Text string `json:"text"`
		}
		err := json.Unmarshal(data, &parts)
		for _, p := range parts {
			*c += content(p.Text)
		}
		return err
	}
	return json.Unmarshal(data, (*string)(c))
}

func (r *request) prompt() string {
	var b strings.Builder
	for _, m := range append(r.Messages, r.Input...) {
		b.WriteString(string(m.Content))
	}
	return b.String()
}

// maxTokens is the most that the reply may have, or unset if the request does not say.
func (r *request) maxTokens(unset int64) int64 {
	return cmp.Or(max(0, r.MaxCompletionTokens), max(0, r.MaxTokens), max(0, r.MaxOutputTokens), unset)
}

// completion is a reply before it is put into one of its forms.
type completion struct {
	id, model     string
	created       int64 // Unix seconds
	text, finish  string
	input, output int64 // tokens
}

type object map[string]any

func (c completion) usage() object {
	return object{
		"prompt_tokens": c.input, "completion_tokens": c.output, "total_tokens": c.input + c.output,
		"prompt_tokens_details":     object{"cached_tokens": 0, "audio_tokens": 0},
		"completion_tokens_details": object{"reasoning_tokens": 0, "audio_tokens": 0},
	}
}

// chat is the reply of Chat Completions.
func (c completion) chat() object {
	return object{
		"id": c.id, "object": "chat.completion", "created": c.created, "model": c.model,
		"choices": []object{{
			"index": 0, "finish_reason": c.finish, "logprobs": nil,
			"message": object{"role": "assistant", "content": c.text, "refusal": nil},
		}},
		"usage": c.usage(),
	}
}

// response is the reply of Responses.
func (c completion) response() object {
	status, incomplete := "completed", any(nil)
	if c.finish == "length" {
		status, incomplete = "incomplete", object{"reason": "max_output_tokens"}
	}
	return object{
		"id": c.id, "object": "response", "created_at": c.created, "model": c.model,
		"status": status, "error": nil, "incomplete_details": incomplete,
		"output": []object{{
			"id": "msg_" + c.id, "type": "message", "role": "assistant", "status": status,
			"content": []object{{"type": "output_text", "text": c.text, "annotations": []object{}}},
		}},
		"usage": object{
			"input_tokens": c.input, "output_tokens": c.output, "total_tokens": c.input + c.output,
			"input_tokens_details": object{"cached_tokens": 0}, "output_tokens_details": object{"reasoning_tokens": 0},
		},
	}
}

// delta is one chunk of a streamed chat reply.
func (c completion) delta(text string, finish *string) object {
	return object{
		"id": c.id, "object": "chat.completion.chunk", "created": c.created, "model": c.model,
		"choices": []object{{"index": 0, "finish_reason": finish, "delta": object{"role": "assistant", "content": text}}},
		"usage":   nil,
	}
}

// usageChunk is the last chunk, which has no choices. It comes only if the request asked for it.
func (c completion) usageChunk() object {
	return object{
		"id": c.id, "object": "chat.completion.chunk", "created": c.created, "model": c.model,
		"choices": []object{}, "usage": c.usage(),
	}
}

func writeError(w http.ResponseWriter, r *refusal) {
	var code any // null if there is none
	if r.code != "" {
		code = r.code
	}
	if r.retryAfter > 0 {
		w.Header().Set("retry-after", strconv.FormatInt(int64((r.retryAfter+time.Second-1)/time.Second), 10))
		w.Header().Set("retry-after-ms", strconv.FormatInt(roundUp(r.retryAfter).Milliseconds(), 10))
	}
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(r.status)
	_ = json.NewEncoder(w).Encode(object{"error": object{"message": r.text, "type": r.typ, "param": nil, "code": code}})
}
