package main

import (
	"encoding/json"
	"fmt"
	"os"
	"strings"
	"time"
)

// job is one call that somebody wants answered.
type job struct {
	Kind   string // "chat" or "summary"
	Prompt string

	at time.Duration // when it comes, after the start
}

// maxTokens is what a reply may have. Callers and provider both reserve it in full.
func (j job) maxTokens() int64 {
	if j.Kind == "summary" {
		return 256
	}
	return 128
}

// inputTokens is the estimate that needs no tokenizer: four bytes of English are about a token.
func (j job) inputTokens() int64 { return int64(len(j.Prompt)+3) / 4 }

// loadJobs reads the prompts. They come evenly within busy, chats and summaries mixed as in the file.
func loadJobs(path string) ([]job, error) {
	data, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	lines := strings.Split(strings.TrimSpace(string(data)), "\n")
	jobs := make([]job, len(lines))
	for i, line := range lines {
		if err := json.Unmarshal([]byte(line), &jobs[i]); err != nil {
			return nil, fmt.Errorf("%s:%d: %w", path, i+1, err)
		}
		jobs[i].at = busy * time.Duration(i) / time.Duration(len(lines))
	}
	return jobs, nil
}
