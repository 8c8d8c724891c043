package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"github.com/docker/go-units"
	"github.com/spf13/cobra"
	"golang.org/x/term"

	"github.com/thaw-project/thaw/internal/daemon/api"
)

// outputVersion is the version of all JSON that commands print.
const outputVersion = 1

// printJSON prints v as an object with a version.
func printJSON(cmd *cobra.Command, v any) error {
	b, err := json.Marshal(v)
	if err != nil {
		return err
	}
	var out any = struct {
		Version int             `json:"version"`
		Items   json.RawMessage `json:"items"`
	}{outputVersion, b}
	if len(b) > 0 && b[0] == '{' {
		m := map[string]json.RawMessage{}
		if err := json.Unmarshal(b, &m); err != nil {
			return err
		}
		if _, ok := m["version"]; ok { // its own, such as the daemon's
			m["daemonVersion"] = m["version"]
		}
		m["version"] = json.RawMessage(fmt.Sprint(outputVersion))
		out = m
	}
	enc := json.NewEncoder(cmd.OutOrStdout())
	enc.SetIndent("", "  ")
	return enc.Encode(out)
}

// writeFile replaces a file: readers see all of it or none. What is no file of its own
// (/dev/stdout, a pipe, a link) stays, and is written to.
func writeFile(path string, b []byte) error {
	if info, err := os.Lstat(path); err == nil && !info.Mode().IsRegular() && !info.IsDir() {
		if err := os.WriteFile(path, b, 0o644); err != nil {
			return fmt.Errorf("write %s: %w", path, err)
		}
		return nil
	}
	tmp, err := os.CreateTemp(filepath.Dir(path), "."+filepath.Base(path)+".*")
	if err != nil {
		return fmt.Errorf("write %s: %w", path, err)
	}
	defer os.Remove(tmp.Name()) // nothing is there any more once it is renamed
	_, err = tmp.Write(b)
	err = errors.Join(err, tmp.Chmod(0o644), tmp.Close())
	if err == nil {
		err = os.Rename(tmp.Name(), path)
	}
	if err != nil {
		return fmt.Errorf("write %s: %w", path, err)
	}
	return nil
}

// progress shows what a long call does on one line of a terminal, and warnings
// always.
type progress struct {
	w     io.Writer
	tty   bool
	shown bool
	name  string
}

func newProgress(w io.Writer, name string) *progress {
	f, ok := w.(*os.File)
	return &progress{w: w, name: name, tty: ok && term.IsTerminal(int(f.Fd())) && os.Getenv("TERM") != "dumb"}
}

func (p *progress) event(e api.Event) {
	if e.Warning != "" {
		p.clear()
		fmt.Fprintf(p.w, "thaw: warning: %s\n", e.Warning)
	}
	if e.Progress == nil || !p.tty {
		return
	}
	p.shown = true
	done, total := e.Progress.Done, max(e.Progress.Total, 1)
	fmt.Fprintf(p.w, "\r\x1b[K%s: %s %3d%% (%s of %s)", p.name, e.Progress.Step, 100*done/total,
		units.HumanSize(float64(done)), units.HumanSize(float64(e.Progress.Total)))
}

func (p *progress) clear() {
	if p.shown {
		fmt.Fprint(p.w, "\r\x1b[K")
		p.shown = false
	}
}
