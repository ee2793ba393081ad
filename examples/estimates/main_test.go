package main

import (
	"bytes"
	"fmt"
	"strings"
	"testing"
)

func TestEstimates(t *testing.T) {
	var out bytes.Buffer
	if err := run(t.Context(), &out); err != nil {
		t.Fatal(err)
	}
	lines := 0
	for line := range strings.Lines(out.String()) {
		var words, reserved, used int64
		_, err := fmt.Sscanf(line, "%d words: reserved %d tokens, used %d", &words, &reserved, &used)
		if err != nil || used < words || used > reserved {
			t.Errorf("%q: %v", line, err)
		}
		lines++
	}
	if lines != 3 {
		t.Errorf("%d lines:\n%s", lines, &out)
	}
}
