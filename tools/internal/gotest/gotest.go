// Package gotest reads the output of go test -json.
package gotest

import (
	"bufio"
	"encoding/json"
	"errors"
	"io"
)

// Event is one line of go test -json; see go doc test2json.
type Event struct {
	Action      string // run, output, pass, fail, skip, build-output, build-fail, ...
	Package     string
	Test        string // empty: the event is about the package
	Output      string
	FailedBuild string // with a package's fail: it did not compile
}

// Read calls each for every event in r. A line that is no event is passed on as output.
func Read(r io.Reader, each func(Event)) error {
	lines := bufio.NewReader(r)
	for {
		line, err := lines.ReadBytes('\n')
		if len(line) > 0 {
			var e Event
			if json.Unmarshal(line, &e) != nil || e.Action == "" {
				e = Event{Action: "build-output", Output: string(line)}
			}
			each(e)
		}
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
	}
}
