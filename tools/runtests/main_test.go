package main

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// module writes a small module and returns its directory.
func module(t *testing.T, files map[string]string) string {
	t.Helper()
	dir := t.TempDir()
	files["go.mod"] = "module example.com/m\n\ngo 1.26\n"
	for name, text := range files {
		path := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

func TestReport(t *testing.T) {
	const pass = "func TestPass(t *testing.T) { t.Log(\"chatter\") }\n"
	head := "package m\n\nimport \"testing\"\n\n"
	tests := []struct {
		name   string
		files  map[string]string
		fails  bool // go test does
		local  bool // what summary says on a developer's machine
		inCI   bool // and with CI=true
		want   []string
		wantNo []string
	}{
		{
			name:  "pass",
			files: map[string]string{"m_test.go": head + pass},
			local: true, inCI: true,
			want:   []string{"ok  \texample.com/m\t", "1 tests passed", "Nothing was skipped."},
			wantNo: []string{"chatter", "=== RUN"},
		},
		{
			name:  "skip",
			files: map[string]string{"m_test.go": head + pass + "func TestSkip(t *testing.T) { t.Skip(\"needs a moon\") }\n"},
			local: true, inCI: false,
			want:   []string{"ok  \texample.com/m\t", "not run: example.com/m: ", "needs a moon", "TestSkip"},
			wantNo: []string{"Nothing was skipped."},
		},
		{
			name:  "fail",
			files: map[string]string{"m_test.go": head + pass + "func TestFail(t *testing.T) { t.Run(\"sub\", func(t *testing.T) { t.Error(\"ouch\") }) }\n"},
			fails: true,
			want:  []string{"--- FAIL: TestFail/sub", "ouch", "FAIL\texample.com/m\t"},
		},
		{
			name:  "the process ends",
			files: map[string]string{"m_test.go": head + pass + "func TestPanic(t *testing.T) { done := make(chan int); go func() { panic(\"boom\") }(); <-done }\n"},
			fails: true,
			want:  []string{"panic: boom", "FAIL\texample.com/m\t"},
		},
		{
			name: "does not compile",
			files: map[string]string{
				"m_test.go":   head + pass,
				"b/b.go":      "package b\n\nvar X int = \"no number\"\n",
				"b/b_test.go": "package b\n\nimport \"testing\"\n\nfunc TestB(t *testing.T) {}\n",
			},
			fails: true,
			want:  []string{"ok  \texample.com/m\t", "cannot use", "FAIL\texample.com/m/b [build failed]"},
		},
		{
			name:  "no tests",
			files: map[string]string{"m.go": "package m\n"},
			want:  []string{"no test files", "No test ran."},
		},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			var out bytes.Buffer
			tally := &tally{w: &out}
			err := run(tally, module(t, test.files), []string{"test", "-vet=off", "./..."})
			if (err != nil) != test.fails {
				t.Errorf("go test: %v, want failure: %v", err, test.fails)
			}
			if got := tally.summary(false); got != test.local {
				t.Errorf("summary = %v, want %v", got, test.local)
			}
			if got := tally.summary(true); got != test.inCI {
				t.Errorf("summary in CI = %v, want %v", got, test.inCI)
			}
			for _, want := range test.want {
				if !strings.Contains(out.String(), want) {
					t.Errorf("output lacks %q", want)
				}
			}
			for _, no := range test.wantNo {
				if strings.Contains(out.String(), no) {
					t.Errorf("output has %q", no)
				}
			}
			if t.Failed() {
				t.Log("output:\n" + out.String())
			}
		})
	}
}
