// Command readmecheck checks that what a README shows is true: every Go block is code that is compiled and run, and
// every shell block uses commands that exist.
//
//	readmecheck [-root directory] README.md...
//
// A Go block that starts with package main is a program: it is built inside the repository and must end by itself,
// with status 0. When the next block is marked "```text output", that is what it must print.
//
// Any other Go block must be in the repository too, in a test or example that go test runs, or in a program under
// examples/, which is then run. Only layout may differ.
//
// A shell block is marked sh and may hold make, go get, go run, git clone and cd, one command on each line.
package main

import (
	"bytes"
	"context"
	"errors"
	"flag"
	"fmt"
	"go/ast"
	"go/doc"
	"go/format"
	"go/parser"
	"go/scanner"
	"go/token"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"time"
)

// A program must end within this time, once it is built.
var patience = time.Minute

func main() {
	root := flag.String("root", ".", "the repository")
	flag.Parse()
	if flag.NArg() == 0 {
		flag.Usage()
		os.Exit(2)
	}
	ok := true
	for _, name := range flag.Args() {
		text, err := os.ReadFile(name)
		if err != nil {
			fmt.Fprintln(os.Stderr, "readmecheck:", err)
			ok = false
			continue
		}
		notes, errs := check(*root, string(text))
		for _, note := range notes {
			fmt.Printf("%s:%s\n", name, note)
		}
		for _, err := range errs {
			fmt.Fprintf(os.Stderr, "%s:%v\n", name, err)
			ok = false
		}
	}
	if !ok {
		os.Exit(1)
	}
}

// check returns a note for every block it has checked and an error for every one that is wrong. Both begin with the
// number of the block's line.
func check(root, text string) (notes []string, errs []error) {
	blocks, err := parse(text)
	if err != nil {
		return nil, []error{err}
	}
	ran := map[string]error{} // by directory: how the program in it ended
	for i, b := range blocks {
		var note string
		var err error
		switch {
		case b.info == "go" && isProgram(b.text):
			var want *string
			if i+1 < len(blocks) && blocks[i+1].info == "text output" {
				want = &blocks[i+1].text
			}
			note, err = checkProgram(root, b.text, want)
		case b.info == "go":
			note, err = checkFragment(root, b.text, ran)
		case b.info == "sh":
			note, err = checkShell(root, b.text)
		case b.info == "text output":
			if i > 0 && blocks[i-1].info == "go" && isProgram(blocks[i-1].text) {
				continue // compared with it above
			}
			err = errors.New("an output without a program before it")
		case disguised.MatchString(b.info):
			err = fmt.Errorf("block marked %q would go unchecked: mark it go or sh", b.info)
		default:
			continue
		}
		if err != nil {
			errs = append(errs, fmt.Errorf("%d: %w", b.line, err))
		} else {
			notes = append(notes, fmt.Sprintf("%d: %s", b.line, note))
		}
	}
	return notes, errs
}

// A block is a fenced block of a Markdown file.
type block struct {
	line int    // where it begins
	info string // what follows the opening fence
	text string
}

var (
	fence = regexp.MustCompile("^( *)(```+|~~~+) *(.*)$")
	// Marks under which code would look the same and not be checked.
	disguised = regexp.MustCompile("(?i)^(go|golang|sh|bash|shell|console|zsh)( |$)")
)

func parse(text string) ([]block, error) {
	var blocks []block
	var open *block
	var indent, mark string
	for i, line := range strings.Split(text, "\n") {
		m := fence.FindStringSubmatch(strings.TrimRight(line, " \r"))
		switch {
		case open == nil && m != nil:
			open = &block{line: i + 1, info: strings.TrimSpace(m[3])}
			indent, mark = m[1], m[2]
		case open == nil:
		case m != nil && m[3] == "" && strings.HasPrefix(m[2], mark):
			blocks = append(blocks, *open)
			open = nil
		default:
			open.text += strings.TrimPrefix(strings.TrimRight(line, "\r"), indent) + "\n"
		}
	}
	if open != nil {
		return nil, fmt.Errorf("%d: the block is not closed", open.line)
	}
	return blocks, nil
}

func isProgram(source string) bool {
	file, err := parser.ParseFile(token.NewFileSet(), "", source, parser.PackageClauseOnly)
	return err == nil && file.Name.Name == "main"
}

func checkFormat(source string) error {
	formatted, err := format.Source([]byte(source))
	if err != nil {
		return fmt.Errorf("not Go: %w", err)
	}
	if strings.TrimSpace(string(formatted)) != strings.TrimSpace(source) {
		return errors.New("not formatted as gofmt does")
	}
	return nil
}

// checkProgram builds and runs a complete program.
func checkProgram(root, source string, want *string) (string, error) {
	if err := checkFormat(source); err != nil {
		return "", err
	}
	dir, err := os.MkdirTemp("", "readmecheck")
	if err != nil {
		return "", err
	}
	defer os.RemoveAll(dir)
	file := filepath.Join(dir, "main.go")
	if err := os.WriteFile(file, []byte(source), 0o644); err != nil {
		return "", err
	}

	// A file outside any module is built by the module it is built from: the library's, or that of the examples when
	// the program needs more than the library does. Either way it is this checkout that it gets.
	module := root
	if out, err := goCommand(root, "list", "-deps", file); err != nil {
		module = filepath.Join(root, "examples")
		if _, err := goCommand(module, "list", "-deps", file); err != nil {
			return "", fmt.Errorf("program does not build:\n%s", out)
		}
	}
	binary := filepath.Join(dir, "program")
	if out, err := goCommand(module, "build", "-o", binary, file); err != nil {
		return "", fmt.Errorf("program does not build:\n%s", out)
	}
	out, err := runProgram(dir, binary)
	if err != nil {
		return "", fmt.Errorf("program does not run: %w\n%s", err, out)
	}
	if want != nil && strings.TrimSpace(out) != strings.TrimSpace(*want) {
		return "", fmt.Errorf("program prints\n%s\nnot\n%s", out, *want)
	}
	return "program was built and run", nil
}

// checkFragment looks for the block in the code of the repository and makes sure that it is run there.
func checkFragment(root, source string, ran map[string]error) (string, error) {
	if err := checkFormat(source); err != nil {
		return "", err
	}
	wanted, _ := tokens([]byte(source))
	if len(wanted) == 0 {
		return "", errors.New("no code")
	}
	why := errors.New("not found in any test, example or program")
	var found string
	err := filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		if err != nil || found != "" {
			return err
		}
		rel, err := filepath.Rel(root, path)
		if err != nil {
			return err
		}
		if d.IsDir() {
			// The tests of these tools hold blocks that are wrong on purpose.
			if rel == "tools" || d.Name() == "testdata" || rel != "." && strings.HasPrefix(d.Name(), ".") {
				return fs.SkipDir
			}
			return nil
		}
		isTest := strings.HasSuffix(rel, "_test.go")
		inExamples := strings.HasPrefix(filepath.ToSlash(rel), "examples/") && strings.HasSuffix(rel, ".go")
		if !isTest && !inExamples {
			return nil
		}
		text, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		all, at := tokens(text)
		for i := 0; i+len(wanted) <= len(all); i++ {
			if !slices.Equal(all[i:i+len(wanted)], wanted) {
				continue
			}
			switch {
			case isTest:
				err = isRunByTest(text, at[i], at[i+len(wanted)-1])
			default:
				err = runOnce(filepath.Dir(path), ran)
			}
			if err == nil {
				found = fmt.Sprintf("found in %s:%d", filepath.ToSlash(rel), 1+bytes.Count(text[:at[i]], []byte("\n")))
				return nil
			}
			why = fmt.Errorf("found in %s: %w", filepath.ToSlash(rel), err)
		}
		return nil
	})
	if err != nil {
		return "", err
	}
	if found == "" {
		return "", why
	}
	return found, nil
}

// tokens returns the tokens of a piece of Go, comments included, and where each begins. Comparing tokens rather than
// lines leaves layout aside and finds nothing inside a string or a comment.
func tokens(source []byte) (all []string, at []int) {
	var s scanner.Scanner
	file := token.NewFileSet().AddFile("", -1, len(source))
	s.Init(file, source, nil, scanner.ScanComments)
	for {
		pos, tok, lit := s.Scan()
		switch {
		case tok == token.EOF:
			return all, at
		case tok == token.SEMICOLON && lit == "\n":
			continue // a line's end
		case lit == "":
			lit = tok.String()
		}
		all = append(all, lit)
		at = append(at, file.Offset(pos))
	}
}

// isRunByTest says whether go test runs the code from offset from to offset to of a test file: not a benchmark, and
// not an example without a comment that says what it prints.
func isRunByTest(source []byte, from, to int) error {
	fset := token.NewFileSet()
	file, err := parser.ParseFile(fset, "", source, parser.ParseComments)
	if err != nil {
		return err
	}
	checked := map[string]bool{}
	for _, example := range doc.Examples(file) {
		checked["Example"+example.Name] = example.Output != "" || example.EmptyOutput
	}
	for _, decl := range file.Decls {
		f, isFunc := decl.(*ast.FuncDecl)
		if !isFunc || fset.Position(f.End()).Offset <= from || fset.Position(f.Pos()).Offset > to {
			continue
		}
		if strings.HasPrefix(f.Name.Name, "Benchmark") {
			return fmt.Errorf("go test does not run %s", f.Name.Name)
		}
		if strings.HasPrefix(f.Name.Name, "Example") && !checked[f.Name.Name] {
			return fmt.Errorf("go test does not run %s: it has no // Output: comment", f.Name.Name)
		}
	}
	return nil
}

// runOnce runs the program in dir, unless it has been run before.
func runOnce(dir string, ran map[string]error) error {
	if err, done := ran[dir]; done {
		return err
	}
	ran[dir] = func() error {
		name, err := goCommand(dir, "list", "-f", "{{.Name}}", ".")
		if err != nil {
			return fmt.Errorf("%w\n%s", err, name)
		}
		if strings.TrimSpace(name) != "main" {
			return errors.New("that is no program, so nothing shows that it runs")
		}
		tmp, err := os.MkdirTemp("", "readmecheck")
		if err != nil {
			return err
		}
		defer os.RemoveAll(tmp)
		binary := filepath.Join(tmp, "program")
		if out, err := goCommand(dir, "build", "-o", binary, "."); err != nil {
			return fmt.Errorf("%w\n%s", err, out)
		}
		if out, err := runProgram(dir, binary); err != nil {
			return fmt.Errorf("%w\n%s", err, out)
		}
		return nil
	}()
	return ran[dir]
}

// goCommand runs the go command in dir and returns all it prints.
func goCommand(dir string, args ...string) (string, error) {
	cmd := exec.Command("go", args...)
	cmd.Dir = dir
	out, err := cmd.CombinedOutput()
	return string(out), err
}

// runProgram runs a program in dir and returns all it prints.
func runProgram(dir, program string) (string, error) {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	cmd := exec.CommandContext(ctx, program)
	cmd.Dir = dir
	cmd.WaitDelay = time.Second // for children that keep the output open
	out, err := cmd.CombinedOutput()
	if ctx.Err() != nil {
		err = fmt.Errorf("not done after %v", patience)
	}
	return string(out), err
}

// checkShell checks the commands of a block, without running them.
func checkShell(root, text string) (string, error) {
	modulePath, err := readModulePath(root)
	if err != nil {
		return "", err
	}
	n, dir := 0, root
	for line := range strings.Lines(text) {
		line, _, _ = strings.Cut(line, " #")
		if strings.HasPrefix(line, "#") {
			continue
		}
		for cmd := range strings.SplitSeq(line, "&&") {
			words := strings.Fields(cmd)
			if len(words) == 0 {
				continue
			}
			if dir, err = checkCommand(root, dir, modulePath, words); err != nil {
				return "", fmt.Errorf("%s: %w", strings.Join(words, " "), err)
			}
			n++
		}
	}
	if n == 0 {
		return "", errors.New("no command")
	}
	return fmt.Sprintf("%d commands exist", n), nil
}

// checkCommand checks a command given in directory dir and returns the directory after it.
func checkCommand(root, dir, modulePath string, words []string) (string, error) {
	inModule := func(s string) (string, bool) {
		s, _, _ = strings.Cut(s, "@")
		rest, ok := strings.CutPrefix(s, modulePath)
		return filepath.Join(root, filepath.FromSlash(rest)), ok && (rest == "" || rest[0] == '/')
	}
	two := strings.Join(words[:min(2, len(words))], " ")
	switch {
	case words[0] == "make" && len(words) > 1:
		for _, target := range words[1:] {
			if !strings.Contains(target, "=") && !hasTarget(dir, target) {
				return "", errors.New("no such target in the Makefile")
			}
		}
		return dir, nil
	case two == "go get" && len(words) == 3:
		pkg, ok := inModule(words[2])
		if !ok || !isDir(pkg) {
			return "", fmt.Errorf("no package of %s", modulePath)
		}
		return dir, nil
	case two == "go run" && len(words) > 2:
		if !isDir(filepath.Join(dir, words[2])) {
			return "", errors.New("no such directory")
		}
		return dir, nil
	case two == "git clone" && len(words) == 3:
		if strings.TrimSuffix(words[2], ".git") != "https://"+modulePath {
			return "", fmt.Errorf("not https://%s", modulePath)
		}
		return dir, nil
	case words[0] == "cd" && len(words) == 2:
		if to := filepath.Join(dir, words[1]); isDir(to) {
			return to, nil
		}
		if dir == root && words[1] == filepath.Base(modulePath) {
			return root, nil // into a fresh clone
		}
		return "", errors.New("no such directory")
	}
	return "", errors.New("readmecheck does not know this command")
}

func isDir(path string) bool {
	info, err := os.Stat(path)
	return err == nil && info.IsDir()
}

func hasTarget(dir, target string) bool {
	text, err := os.ReadFile(filepath.Join(dir, "Makefile"))
	return err == nil && regexp.MustCompile(`(?m)^`+regexp.QuoteMeta(target)+`:`).Match(text)
}

func readModulePath(root string) (string, error) {
	out, err := goCommand(root, "list", "-m")
	if err != nil {
		return "", fmt.Errorf("%w\n%s", err, out)
	}
	return strings.TrimSpace(out), nil
}
