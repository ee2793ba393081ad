// Command mutants breaks the library on purpose, in one place at a time, and checks that a test fails each time.
//
//	mutants [-root directory] [-timeout 60s] list.txt [name...]
//
// The list says what to break: lines to take out, marked with a minus, and lines to put in their place, marked with a
// plus. What follows the mark is compared without the space around it. The lines must be in the file exactly once, next
// to each other, so that the list cannot fall behind the code unnoticed.
//
//	# A comment.
//	mutant window-edge: a window ends a nanosecond late
//	file window.go
//	test -run TestWindow .
//	- if now >= end {
//	+ if now > end {
//
// The test line has the arguments of go test and may be left out: all tests run then. It helps where a mutant would
// hang a test long before another notices, and may have a -timeout of its own. With names, only those mutants are tried.
//
// A mutant is killed when a test fails or hangs. One that survives, that does not compile or that is not in the code
// any more fails the run.
package main

import (
	"bytes"
	"cmp"
	"flag"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/llmrate/llmrate/tools/internal/gotest"
)

func main() {
	root := flag.String("root", ".", "the module to break; it is copied first")
	timeout := flag.Duration("timeout", time.Minute, "a test that takes longer hangs")
	flag.Parse()
	if flag.NArg() == 0 {
		flag.Usage()
		os.Exit(2)
	}
	if err := run(*root, *timeout, flag.Arg(0), flag.Args()[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "mutants:", err)
		os.Exit(1)
	}
}

func run(root string, timeout time.Duration, list string, names []string) error {
	text, err := os.ReadFile(list)
	if err != nil {
		return err
	}
	mutants, err := parse(string(text))
	if err != nil {
		return fmt.Errorf("%s:%w", list, err)
	}
	if len(names) > 0 {
		mutants = slices.DeleteFunc(mutants, func(m mutant) bool { return !slices.Contains(names, m.name) })
	}
	if len(mutants) < max(1, len(names)) {
		return fmt.Errorf("%s: no mutant, or not all of those named", list)
	}

	dir, err := os.MkdirTemp("", "mutants")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	if err := copyModule(dir, root); err != nil {
		return err
	}

	// A test that fails anyway would kill every mutant.
	checked := map[string]bool{}
	for _, m := range mutants {
		key := strings.Join(m.test, " ")
		if checked[key] {
			continue
		}
		checked[key] = true
		if r := goTest(dir, m.test, timeout); r.verdict != survived {
			return fmt.Errorf("without any mutant: go test %s: %s\n%s", key, r, r.output)
		}
	}

	var killedN, hungN, badN int
	for _, m := range mutants {
		start := time.Now()
		r := try(dir, m, timeout)
		switch r.verdict {
		case killed:
			killedN++
		case hung:
			killedN++
			hungN++
		default:
			badN++
		}
		fmt.Printf("%s (%s): %s (%.1f s)\n", m.name, m.why, r, time.Since(start).Seconds())
		if r.verdict != killed && r.verdict != hung {
			fmt.Print(r.output)
		}
	}
	fmt.Printf("%d mutants: %d killed (%d of them hang), %d not\n", len(mutants), killedN, hungN, badN)
	if badN > 0 {
		return fmt.Errorf("%d mutants were not killed", badN)
	}
	return nil
}

// A mutant is one fault to put into the code.
type mutant struct {
	name, why string
	file      string
	test      []string // arguments of go test
	old, new  []string // lines, without the space around them
}

func parse(text string) ([]mutant, error) {
	var mutants []mutant
	var m *mutant // the one being read
	for i, line := range strings.Split(text, "\n") {
		line = strings.TrimSpace(line)
		if line == "" || strings.HasPrefix(line, "#") {
			continue
		}
		word, rest, _ := strings.Cut(line, " ")
		if line[0] == '-' || line[0] == '+' {
			word, rest = line[:1], line[1:]
		}
		rest = strings.TrimSpace(rest)
		if word != "mutant" && m == nil {
			return nil, fmt.Errorf("%d: want a line that starts with mutant: %q", i+1, line)
		}
		switch word {
		case "mutant":
			name, why, _ := strings.Cut(rest, ":")
			if name == "" || slices.ContainsFunc(mutants, func(m mutant) bool { return m.name == name }) {
				return nil, fmt.Errorf("%d: every mutant needs a name of its own: %q", i+1, line)
			}
			mutants = append(mutants, mutant{name: name, why: strings.TrimSpace(why), test: []string{"./..."}})
			m = &mutants[len(mutants)-1]
		case "file":
			m.file = rest
		case "test":
			m.test = strings.Fields(rest)
		case "-":
			m.old = append(m.old, rest)
		case "+":
			m.new = append(m.new, rest)
		default:
			return nil, fmt.Errorf("%d: unknown word %q", i+1, word)
		}
	}
	for _, m := range mutants {
		if m.file == "" || len(m.old) == 0 || len(m.test) == 0 || slices.Equal(m.old, m.new) {
			return nil, fmt.Errorf(" mutant %s: needs a file and lines to change", m.name)
		}
	}
	return mutants, nil
}

// apply returns source with the mutant in it.
func (m mutant) apply(source string) (string, error) {
	lines := strings.Split(source, "\n")
	at, found := 0, 0
	for i := range lines {
		if i+len(m.old) <= len(lines) && slices.EqualFunc(lines[i:i+len(m.old)], m.old, equalTrimmed) {
			at = i
			found++
		}
	}
	if found != 1 {
		return "", fmt.Errorf("its lines are %d times in %s, not once", found, m.file)
	}
	return strings.Join(slices.Replace(lines, at, at+len(m.old), m.new...), "\n"), nil
}

func equalTrimmed(line, old string) bool { return strings.TrimSpace(line) == old }

// try puts the mutant into the module in dir, runs its tests, and takes it out again.
func try(dir string, m mutant, timeout time.Duration) result {
	path := filepath.Join(dir, filepath.FromSlash(m.file))
	source, err := os.ReadFile(path)
	if err != nil {
		return result{verdict: failed, output: err.Error() + "\n"}
	}
	broken, err := m.apply(string(source))
	if err != nil {
		return result{verdict: stale, output: err.Error() + "\n"}
	}
	if err := os.WriteFile(path, []byte(broken), 0o644); err != nil {
		return result{verdict: failed, output: err.Error() + "\n"}
	}
	r := goTest(dir, m.test, timeout)
	if err := os.WriteFile(path, source, 0o644); err != nil {
		return result{verdict: failed, output: err.Error() + "\n"}
	}
	return r
}

type verdict string

const (
	killed    verdict = "killed"
	hung      verdict = "killed, hangs"
	survived  verdict = "SURVIVED"
	stale     verdict = "STALE"
	noCompile verdict = "DOES NOT COMPILE"
	failed    verdict = "FAILED" // neither: go test itself did not work
)

type result struct {
	verdict verdict
	tests   []string // those that failed or hung
	output  string
}

func (r result) String() string {
	return strings.TrimSpace(string(r.verdict) + " " + strings.Join(r.tests, " "))
}

// goTest runs go test in dir. Vet is off: it is a test that has to notice.
func goTest(dir string, args []string, timeout time.Duration) result {
	cmd := exec.Command("go", append([]string{"test", "-json", "-count=1", "-failfast", "-vet=off", "-timeout", timeout.String()}, args...)...)
	cmd.Dir = dir
	out, err := cmd.CombinedOutput()

	var text strings.Builder
	r := result{verdict: survived}
	ended := map[string]bool{}
	var begun, tests []string
	_ = gotest.Read(bytes.NewReader(out), func(e gotest.Event) { // reading from memory does not fail
		if line := strings.TrimSpace(e.Output); !strings.HasPrefix(line, "=== ") && !strings.HasPrefix(line, "--- PASS") {
			text.WriteString(e.Output)
		}
		switch e.Action {
		case "run":
			begun = append(begun, e.Test)
		case "pass", "skip":
			ended[e.Test] = true
		case "fail":
			if e.Test != "" {
				tests = append(tests, e.Test)
			}
		}
		switch {
		case e.FailedBuild != "":
			r.verdict = noCompile
		case r.verdict == noCompile:
		case strings.HasPrefix(e.Output, "panic: test timed out") || strings.HasPrefix(e.Output, "*** Test killed"):
			r.verdict = hung
		case e.Action == "fail" && r.verdict != hung:
			r.verdict = killed
		}
	})
	if err != nil && r.verdict == survived {
		r.verdict = failed
	}
	if len(tests) == 0 {
		// A test that took the process with it has no end: it is among those that only began.
		tests = slices.DeleteFunc(begun, func(name string) bool { return ended[name] })
	}
	if r.verdict == killed || r.verdict == hung {
		r.tests = withoutParents(tests)
	}
	if r.verdict == killed && len(r.tests) == 0 {
		r.verdict = failed // no test has failed: perhaps TestMain or an init
	}
	if r.verdict != survived {
		r.output = text.String()
	}
	return r
}

// withoutParents drops the tests whose subtests are in the list, and shortens a long list.
func withoutParents(tests []string) []string {
	var short []string
	for _, name := range tests {
		if !slices.ContainsFunc(tests, func(other string) bool { return strings.HasPrefix(other, name+"/") }) {
			short = append(short, name)
		}
	}
	slices.SortFunc(short, cmp.Compare[string])
	if short = slices.Compact(short); len(short) > 3 {
		short = append(short[:3], fmt.Sprintf("and %d more", len(short)-3))
	}
	return short
}

// copyModule copies the module in src: its tests and test data too, but no hidden files and no nested modules.
func copyModule(dst, src string) error {
	return filepath.WalkDir(src, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		rel, err := filepath.Rel(src, path)
		if err != nil {
			return err
		}
		if rel != "." && strings.HasPrefix(d.Name(), ".") {
			if d.IsDir() {
				return fs.SkipDir
			}
			return nil
		}
		target := filepath.Join(dst, rel)
		if d.IsDir() {
			if _, err := os.Stat(filepath.Join(path, "go.mod")); err == nil && rel != "." {
				return fs.SkipDir
			}
			return os.MkdirAll(target, 0o755)
		}
		text, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		return os.WriteFile(target, text, 0o644)
	})
}
