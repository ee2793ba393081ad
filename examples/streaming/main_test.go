package main

import (
	"bytes"
	"fmt"
	"strings"
	"testing"
)

func TestStreaming(t *testing.T) {
	var out bytes.Buffer
	if err := run(t.Context(), &out); err != nil {
		t.Fatal(err)
	}
	text, last, _ := strings.Cut(out.String(), "\n\n")
	// The provider counts four bytes as a token; the prompt has five.
	if want := fmt.Sprintf("reserved 500 tokens, used %d\n", 5+len(text)/4); text == "" || last != want {
		t.Errorf("%d bytes of text, then %q, want %q", len(text), last, want)
	}
}
