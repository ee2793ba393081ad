package main

import (
	"fmt"
	"strings"
	"testing"
	"time"
)

// The repository that the READMEs below belong to is testdata/repo. Their fences are written with ”' here.
func TestCheck(t *testing.T) {
	patience = 5 * time.Second // for the program that does not end
	tests := []struct {
		name   string
		readme string
		want   string // part of the only note, or of the only error after "error: "
	}{
		// Fragments.
		{
			name:   "part of an example that is run",
			readme: "'''go\nfour := lib.Double(2)\nif four > 3 {\n\tfmt.Println(four) // four\n}\n'''",
			want:   "1: found in lib_test.go:11",
		},
		{
			name:   "a whole test",
			readme: "Text.\n\n'''go\nfunc TestDouble(t *testing.T) {\n\tif lib.Double(-1) != -2 {\n\t\tt.Error(\"twice minus one\")\n\t}\n}\n'''",
			want:   "3: found in lib_test.go:22",
		},
		{
			name:   "in a list",
			readme: "- Item\n\n  '''go\n  four := lib.Double(2)\n  '''",
			want:   "3: found in lib_test.go:11",
		},
		{
			name:   "part of a program in examples",
			readme: "'''go\nfmt.Println(\"hello\", lib.Double(21))\n'''",
			want:   "1: found in examples/hello/main.go:10",
		},
		{
			name:   "nowhere",
			readme: "'''go\nfour := lib.Double(4)\n'''",
			want:   "error: 1: not found",
		},
		{
			name:   "another comment",
			readme: "'''go\nfour := lib.Double(2)\nif four > 3 {\n\tfmt.Println(four) // five\n}\n'''",
			want:   "error: 1: not found",
		},
		{
			name:   "only in code that is no test",
			readme: "'''go\nfunc Double(n int) int { return 2 * n }\n'''",
			want:   "error: 1: not found",
		},
		{
			name:   "example without output",
			readme: "'''go\nfmt.Println(lib.Double(5))\n'''",
			want:   "error: 1: found in lib_test.go: go test does not run ExampleDouble_unchecked",
		},
		{
			name:   "benchmark",
			readme: "'''go\nlib.Double(7)\n'''",
			want:   "error: 1: found in lib_test.go: go test does not run BenchmarkDouble",
		},
		{
			name:   "only in a comment",
			readme: "'''go\nlib.Double(8)\n'''",
			want:   "error: 1: not found",
		},
		{
			name:   "only in a string",
			readme: "'''go\nlib.Double(9)\n'''",
			want:   "error: 1: not found",
		},
		{
			name:   "program in examples that fails",
			readme: "'''go\nos.Stdout.WriteString(\"goodbye\")\n'''",
			want:   "error: 1: found in examples/fails/main.go: exit status 3",
		},
		{
			name:   "package in examples that is no program",
			readme: "'''go\nprintln(\"nobody\")\n'''",
			want:   "error: 1: found in examples/lib/lib.go: that is no program",
		},
		{
			name:   "not formatted",
			readme: "'''go\nfour := lib.Double( 2 )\n'''",
			want:   "error: 1: not formatted",
		},
		{
			name:   "not Go",
			readme: "'''go\nfour := \n'''",
			want:   "error: 1: not Go",
		},
		{
			name:   "nothing",
			readme: "'''go\n'''",
			want:   "error: 1: no code",
		},

		// Programs.
		{
			name:   "program",
			readme: "'''go\npackage main\n\nimport \"example.com/owner/lib\"\n\nfunc main() { println(lib.Double(3)) }\n'''",
			want:   "1: program was built and run",
		},
		{
			name:   "program that needs what the examples need",
			readme: "'''go\npackage main\n\nimport \"example.com/dep\"\n\nfunc main() { println(dep.Name) }\n'''",
			want:   "1: program was built and run",
		},
		{
			name:   "program that does not compile",
			readme: "'''go\npackage main\n\nimport \"example.com/owner/lib\"\n\nfunc main() { println(lib.Triple(3)) }\n'''",
			want:   "error: 1: program does not build",
		},
		{
			name:   "program that needs what nobody has",
			readme: "'''go\npackage main\n\nimport \"example.com/nobody\"\n\nfunc main() { println(nobody.Name) }\n'''",
			want:   "error: 1: program does not build",
		},
		{
			name:   "program that fails",
			readme: "'''go\npackage main\n\nfunc main() { panic(\"no\") }\n'''",
			want:   "error: 1: program does not run: exit status 2",
		},
		{
			name:   "program that does not end",
			readme: "'''go\npackage main\n\nfunc main() {\n\tfor {\n\t}\n}\n'''",
			want:   "error: 1: program does not run: not done after",
		},
		{
			name:   "program with its output",
			readme: "'''go\npackage main\n\nimport \"fmt\"\n\nfunc main() { fmt.Println(6) }\n'''\n\nIt prints:\n\n'''text output\n6\n'''",
			want:   "1: program was built and run",
		},
		{
			name:   "program with the wrong output",
			readme: "'''go\npackage main\n\nfunc main() { println(6) }\n'''\n\n'''text output\n7\n'''",
			want:   "error: 1: program prints\n6",
		},
		{
			name:   "output without a program",
			readme: "'''text output\n7\n'''",
			want:   "error: 1: an output without a program",
		},

		// Commands.
		{
			name: "commands",
			readme: "'''sh\n# Get it:\ngit clone https://example.com/owner/lib && cd lib\nmake demo # a comment\nmake test FLAGS=x\n" +
				"go get example.com/owner/lib@latest\ncd examples && go run ./hello\n'''",
			want: "1: 7 commands exist",
		},
		{
			name:   "no such target",
			readme: "'''sh\nmake demo tests\n'''",
			want:   "error: 1: make demo tests: no such target",
		},
		{
			name:   "no Makefile there",
			readme: "'''sh\ncd examples\nmake demo\n'''",
			want:   "error: 1: make demo: no such target",
		},
		{
			name:   "another module",
			readme: "'''sh\ngo get example.com/owner/library\n'''",
			want:   "error: 1: go get example.com/owner/library: no package of",
		},
		{
			name:   "no such package",
			readme: "'''sh\ngo get example.com/owner/lib/gone\n'''",
			want:   "error: 1: go get example.com/owner/lib/gone: no package of",
		},
		{
			name:   "no such directory",
			readme: "'''sh\ncd examples\ngo run ./gone\n'''",
			want:   "error: 1: go run ./gone: no such directory",
		},
		{
			name:   "another repository",
			readme: "'''sh\ngit clone https://example.com/owner/other\n'''",
			want:   "error: 1: git clone https://example.com/owner/other: not https://example.com/owner/lib",
		},
		{
			name:   "unknown command",
			readme: "'''sh\nrm -rf .\n'''",
			want:   "error: 1: rm -rf .: readmecheck does not know",
		},
		{
			name:   "no command",
			readme: "'''sh\n# nothing\n'''",
			want:   "error: 1: no command",
		},

		// Marks.
		{
			name:   "a mark that would hide the block",
			readme: "'''golang\nx\n'''",
			want:   `error: 1: block marked "golang" would go unchecked`,
		},
		{
			name:   "Go with something behind it",
			readme: "'''go nocheck\nx\n'''",
			want:   `error: 1: block marked "go nocheck" would go unchecked`,
		},
		{
			name:   "not closed",
			readme: "'''go\nx\n",
			want:   "error: 1: the block is not closed",
		},
		{
			name:   "other blocks",
			readme: "'''text\nx\n'''\n\n''''md\n'''go\nx\n'''\n''''\n\n'''sh\nmake demo\n'''",
			want:   "11: 1 commands exist",
		},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			readme := strings.ReplaceAll(test.readme, "''''", "````")
			readme = strings.ReplaceAll(readme, "'''", "```")
			notes, errs := check("testdata/repo", readme)
			var got []string
			got = append(got, notes...)
			for _, err := range errs {
				got = append(got, fmt.Sprintf("error: %v", err))
			}
			if len(got) != 1 || !strings.HasPrefix(got[0], test.want) {
				t.Errorf("got %q, want %q", got, test.want)
			}
		})
	}
}
