package main

import (
	"bytes"
	"testing"
)

func TestEscalation(t *testing.T) {
	var out bytes.Buffer
	if err := run(t.Context(), &out); err != nil {
		t.Fatal(err)
	}
	want := `gpt-5 is overloaded, on to gpt-5-mini
gpt-5-mini answered after 2 calls: Why is the sky blue?
gpt-5 is overloaded, on to gpt-5-mini
gpt-5-mini answered after 2 calls: Why is the grass green?
gpt-5 is full, on to gpt-5-mini
gpt-5-mini answered after 1 calls: Why is the rose red?
`
	if out.String() != want {
		t.Errorf("got\n%s\nwant\n%s", &out, want)
	}
}
