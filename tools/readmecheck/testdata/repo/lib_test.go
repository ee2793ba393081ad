package lib_test

import (
	"fmt"
	"testing"

	"example.com/owner/lib"
)

func ExampleDouble() {
	four := lib.Double(2)
	if four > 3 {
		fmt.Println(four) // four
	}
	// Output: 4
}

func ExampleDouble_unchecked() {
	fmt.Println(lib.Double(5))
}

func TestDouble(t *testing.T) {
	if lib.Double(-1) != -2 {
		t.Error("twice minus one")
	}
}

func BenchmarkDouble(b *testing.B) {
	for b.Loop() {
		lib.Double(7)
	}
}

// In a comment: lib.Double(8).
var text = `
lib.Double(9)
`

func TestText(t *testing.T) {
	if text == "" {
		t.Error("no text")
	}
}
