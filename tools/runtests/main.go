// Command runtests runs go test in the modules it is given and prints what go test prints. In the end it also says
// what was left out, and why: go test keeps silent about skipped tests. With CI=true, leaving something out fails.
//
//	runtests [-flags "-run=TestName"] directory...
package main

import (
	"flag"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strings"

	"github.com/llmrate/llmrate/tools/internal/gotest"
)

func main() {
	flags := flag.String("flags", "", "more flags for go test")
	flag.Parse()

	t := &tally{w: os.Stdout}
	args := []string{"test", "-shuffle=on"}
	// The race detector needs a C compiler on most systems; not having one is no reason not to test.
	if out, err := exec.Command("go", "list", "-race", "errors").CombinedOutput(); err == nil {
		args = append(args, "-race")
	} else {
		t.skipped = append(t.skipped, "the race detector: "+strings.TrimSpace(string(out)))
	}
	args = append(args, strings.Fields(*flags)...)
	args = append(args, "./...")

	ok := true
	for _, dir := range flag.Args() {
		fmt.Printf("(cd %s && go %s)\n", dir, strings.Join(args, " "))
		if err := run(t, dir, args); err != nil {
			fmt.Fprintf(os.Stderr, "%s: %v\n", dir, err)
			ok = false
		}
	}
	if !t.summary(os.Getenv("CI") == "true") || !ok {
		os.Exit(1)
	}
}

// run runs go test -json in dir and lets t count and print.
func run(t *tally, dir string, args []string) error {
	cmd := exec.Command("go", append([]string{args[0], "-json"}, args[1:]...)...)
	cmd.Dir = dir
	cmd.Stderr = os.Stderr
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		return err
	}
	if err := cmd.Start(); err != nil {
		return err
	}
	if err := gotest.Read(stdout, t.event); err != nil {
		return err
	}
	return cmd.Wait()
}

// A tally turns the events of go test -json back into what go test prints without -v, and counts.
type tally struct {
	w       io.Writer
	passed  int      // tests
	failed  []string // packages
	skipped []string // what, and why

	output map[string]map[string][]string // by package and test, of those that have not ended yet
}

func (t *tally) event(e gotest.Event) {
	switch e.Action {
	case "build-output":
		fmt.Fprint(t.w, e.Output)
		return
	case "output":
		if strings.HasPrefix(e.Output, "=== ") {
			return // "=== RUN" and the like
		}
		if t.output == nil {
			t.output = map[string]map[string][]string{}
		}
		if t.output[e.Package] == nil {
			t.output[e.Package] = map[string][]string{}
		}
		t.output[e.Package][e.Test] = append(t.output[e.Package][e.Test], e.Output)
		return
	case "pass", "fail", "skip":
	default:
		return
	}

	lines := t.output[e.Package][e.Test]
	delete(t.output[e.Package], e.Test)
	if e.Test == "" {
		t.endOfPackage(e, lines)
		return
	}
	switch e.Action {
	case "pass":
		t.passed++
	case "fail":
		t.print(lines)
	case "skip":
		t.skipped = append(t.skipped, e.Package+": "+strings.Join(strings.Fields(strings.Join(lines, " ")), " "))
	}
}

func (t *tally) endOfPackage(e gotest.Event, lines []string) {
	if e.Action == "fail" {
		t.failed = append(t.failed, e.Package)
		// A test that ended the process has no end of its own: what it said is still here.
		for _, unfinished := range t.output[e.Package] {
			t.print(unfinished)
		}
		t.print(lines)
	} else {
		for _, line := range lines {
			if strings.HasPrefix(line, "ok ") || strings.HasPrefix(line, "? ") {
				fmt.Fprint(t.w, line)
			}
		}
	}
	delete(t.output, e.Package)
}

func (t *tally) print(lines []string) {
	for _, line := range lines {
		fmt.Fprint(t.w, line)
	}
}

// summary says what ran and what did not, and whether that is good enough.
func (t *tally) summary(ci bool) bool {
	fmt.Fprintf(t.w, "%d tests passed, subtests and examples included.\n", t.passed)
	if len(t.skipped) == 0 {
		fmt.Fprintln(t.w, "Nothing was skipped.")
	}
	for _, what := range t.skipped {
		fmt.Fprintln(t.w, "not run:", what)
	}
	if ci && len(t.skipped) > 0 {
		fmt.Fprintln(t.w, "CI=true: everything has to run here.")
		return false
	}
	if t.passed == 0 {
		fmt.Fprintln(t.w, "No test ran.")
		return false
	}
	if len(t.failed) > 0 {
		fmt.Fprintln(t.w, "FAILED:", strings.Join(t.failed, ", "))
		return false
	}
	return true
}
