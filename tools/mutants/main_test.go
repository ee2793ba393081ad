package main

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
)

// try1 parses a list of one mutant and tries it on the fixture.
func try1(t *testing.T, list string) result {
	t.Helper()
	mutants, err := parse(list)
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	if err := copyModule(dir, "testdata/fixture"); err != nil {
		t.Fatal(err)
	}
	before, err := os.ReadFile(filepath.Join(dir, "box.go"))
	if err != nil {
		t.Fatal(err)
	}
	r := try(dir, mutants[0], 2*time.Second)
	after, err := os.ReadFile(filepath.Join(dir, "box.go"))
	if err != nil {
		t.Fatal(err)
	}
	if string(before) != string(after) {
		t.Error("the mutant was left in the code")
	}
	return r
}

func TestVerdicts(t *testing.T) {
	tests := []struct {
		name string
		list string
		want verdict
		test string // that is named
	}{
		{
			name: "killed by a subtest",
			list: "mutant a: one more than fits\nfile box.go\n- if b.held >= b.max {\n+ if b.held > b.max {",
			want: killed, test: "TestLimit/full",
		},
		{
			name: "killed by a panic",
			list: "mutant a: closes twice\nfile box.go\ntest -run TestLimit .\n- if b.held == b.max {\n+ if b.held >= 0 {",
			want: killed, test: "TestLimit/fits",
		},
		{
			name: "killed by a crash of the process",
			list: "mutant a: an unlock too many\nfile box.go\ntest -run TestFull .\n- b.held++\n+ b.held++\n+ b.mu.Unlock()",
			want: killed, test: "TestFull",
		},
		{
			name: "killed by a panic in another goroutine",
			list: "mutant a:\nfile box.go\ntest -run TestFull .\n- close(b.full)\n+ go func() { panic(1) }()",
			want: killed, test: "TestFull",
		},
		{
			name: "killed because it hangs",
			list: "mutant a: nobody is told\nfile box.go\n- close(b.full)",
			want: hung, test: "TestFull",
		},
		{
			name: "survives, nothing tests it",
			list: "mutant a:\nfile box.go\n- return b.max - b.held\n+ return b.max",
			want: survived,
		},
		{
			name: "survives, the wrong tests are run",
			list: "mutant a:\nfile box.go\ntest -run TestFull .\n- if b.held >= b.max {\n+ if b.held > b.max {",
			want: survived,
		},
		{
			name: "vet finds it but no test does",
			list: "mutant a:\nfile box.go\n- return b.max - b.held\n+ b.held = b.held\n+ return b.max",
			want: survived,
		},
		{
			name: "does not compile",
			list: "mutant a:\nfile box.go\n- b.held++\n+ b.hold++",
			want: noCompile,
		},
		{
			name: "not in the code",
			list: "mutant a:\nfile box.go\n- if b.held > b.max {\n+ if b.held >= b.max {",
			want: stale,
		},
		{
			name: "twice in the code",
			list: "mutant a:\nfile box.go\n- defer b.mu.Unlock()\n+ _ = 0",
			want: stale,
		},
		{
			name: "twice in the code, once with the next line",
			list: "mutant a:\nfile box.go\n-\tdefer b.mu.Unlock()\n-\tif b.held >= b.max {\n+\tdefer b.mu.Unlock()\n+\tif false {",
			want: killed, test: "TestLimit/full",
		},
		{
			name: "no such file",
			list: "mutant a:\nfile bag.go\n- b.held++",
			want: failed,
		},
		{
			name: "no such flag",
			list: "mutant a:\nfile box.go\ntest -nonsense .\n- b.held++",
			want: failed,
		},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			r := try1(t, test.list)
			if r.verdict != test.want || test.test != "" && !slices.Equal(r.tests, []string{test.test}) {
				t.Errorf("got %q, want %q %s\n%s", r, test.want, test.test, r.output)
			}
		})
	}
}

func TestParseErrors(t *testing.T) {
	for name, list := range map[string]string{
		"no mutant line":  "file box.go\n",
		"unknown word":    "mutant a:\nfiles box.go\n",
		"no name":         "mutant : why\n",
		"name twice":      "mutant a:\nfile f\n- x\nmutant a:\nfile f\n- y\n",
		"no file":         "mutant a:\n- x\n",
		"nothing to take": "mutant a:\nfile f\n+ x\n",
		"nothing changed": "mutant a:\nfile f\n- x\n+  x\n",
		"empty test":      "mutant a:\nfile f\ntest\n- x\n",
	} {
		if m, err := parse(list); err == nil {
			t.Errorf("%s: no error, got %+v", name, m)
		}
	}
}

func TestRun(t *testing.T) {
	good := "# ok\n\nmutant a: one more\nfile box.go\n- if b.held >= b.max {\n+ if b.held > b.max {\n"
	bad := "mutant b: unseen\nfile box.go\n- return b.max - b.held\n+ return b.max\n"
	list := func(text string) string {
		path := filepath.Join(t.TempDir(), "list.txt")
		if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
		return path
	}
	fixture := "testdata/fixture"
	if err := run(fixture, time.Minute, list(good), nil); err != nil {
		t.Errorf("all killed: %v", err)
	}
	if err := run(fixture, time.Minute, list(good+bad), []string{"a"}); err != nil {
		t.Errorf("the surviving one not asked for: %v", err)
	}
	if err := run(fixture, time.Minute, list(good+bad), nil); err == nil {
		t.Error("one survives: no error")
	}
	if err := run(fixture, time.Minute, list(good), []string{"typo"}); err == nil {
		t.Error("an unknown name: no error")
	}
	if err := run(fixture, time.Minute, list(""), nil); err == nil {
		t.Error("an empty list: no error")
	}

	// Tests that fail without any mutant prove nothing.
	broken := t.TempDir()
	if err := copyModule(broken, fixture); err != nil {
		t.Fatal(err)
	}
	failing := "package fixture\n\nimport \"testing\"\n\nfunc TestFails(t *testing.T) { t.Fail() }\n"
	if err := os.WriteFile(filepath.Join(broken, "more_test.go"), []byte(failing), 0o644); err != nil {
		t.Fatal(err)
	}
	err := run(broken, time.Minute, list(good), nil)
	if err == nil || !strings.Contains(err.Error(), "without any mutant") {
		t.Errorf("failing tests: %v", err)
	}
}
