package bench

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os/exec"
	"time"

	"golang.org/x/sys/unix"

	"github.com/thaw-project/thaw/internal/lab"
)

// Registry is a lab registry in a process of its own: what it does is not to be
// mistaken for what a client does.
type Registry struct {
	Address string      // host:port
	Images  []lab.Image // what it serves

	cmd *exec.Cmd
}

// labTimeout bounds what is asked of the lab besides the registry's API.
const labTimeout = time.Minute

// ServeLayout starts `thaw lab serve` on an OCI layout; exe is thaw.
func ServeLayout(ctx context.Context, exe, layout, network string) (*Registry, error) {
	cmd := exec.Command(exe, "lab", "serve", "--dir", layout, "--listen", "127.0.0.1:0", "--net", network, "--json", "--until-stdin-ends")
	cmd.SysProcAttr = &unix.SysProcAttr{Setpgid: true} // a terminal's Ctrl-C is for us
	stderr := &Tail{}
	cmd.Stderr = stderr
	if _, err := cmd.StdinPipe(); err != nil { // it ends when this process does
		return nil, err
	}
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	if err := cmd.Start(); err != nil {
		return nil, fmt.Errorf("start lab: %w", err)
	}
	r := &Registry{cmd: cmd}
	defer context.AfterFunc(ctx, func() { cmd.Process.Signal(unix.SIGTERM) })()
	var hello struct {
		Address string
		Images  []lab.Image
	}
	line, err := bufio.NewReader(stdout).ReadBytes('\n')
	if err == nil {
		err = json.Unmarshal(line, &hello)
	}
	if err != nil {
		cerr := r.Close() // and so stderr is complete
		if ctx.Err() != nil {
			return nil, errors.Join(ctx.Err(), cerr)
		}
		return nil, errors.Join(fmt.Errorf("start lab: %s (%w)", said(stderr), err), cerr)
	}
	r.Address, r.Images = hello.Address, hello.Images
	return r, nil
}

// Close ends the lab; what was pushed is lost.
func (r *Registry) Close() error {
	_ = r.cmd.Process.Signal(unix.SIGTERM) // it may have ended by itself
	kill := time.AfterFunc(5*time.Second, func() { r.cmd.Process.Kill() })
	defer kill.Stop()
	var exit *exec.ExitError
	if err := r.cmd.Wait(); err != nil && !errors.As(err, &exit) {
		return fmt.Errorf("end lab: %w", err)
	}
	return nil
}

// Warm has the lab read all blobs into the page cache.
func (r *Registry) Warm(ctx context.Context) error { return r.call(ctx, http.MethodPost, "/warm", nil) }

// Reset begins to count anew.
func (r *Registry) Reset(ctx context.Context) error {
	return r.call(ctx, http.MethodPost, "/stats/reset", nil)
}

// Cost is what was fetched since Reset.
func (r *Registry) Cost(ctx context.Context) (*Cost, error) {
	var s lab.Stats
	if err := r.call(ctx, http.MethodGet, "/stats", &s); err != nil {
		return nil, err
	}
	return &Cost{Bytes: s.Bytes, Requests: s.Requests}, nil
}

func (r *Registry) call(ctx context.Context, method, path string, out any) error {
	ctx, cancel := context.WithTimeout(ctx, labTimeout)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, method, "http://"+r.Address+path, nil)
	if err != nil {
		return err
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return fmt.Errorf("ask lab: %w", err)
	}
	defer resp.Body.Close()
	if resp.StatusCode >= 300 {
		b, _ := io.ReadAll(io.LimitReader(resp.Body, 1<<10)) // the status says it as well
		return fmt.Errorf("ask lab: %s %s: %s: %s", method, path, resp.Status, b)
	}
	if out == nil {
		return nil
	}
	if err := json.NewDecoder(resp.Body).Decode(out); err != nil {
		return fmt.Errorf("read lab's answer: %w", err)
	}
	return nil
}
