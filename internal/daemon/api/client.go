package api

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"path/filepath"
	"time"
)

// SocketName is the daemon's socket in its state directory.
const SocketName = "daemon.sock"

// ErrNotRunning says that no daemon answers on the socket.
var ErrNotRunning = errors.New("no daemon is running")

// Client talks to the daemon of a state directory.
type Client struct {
	root string
	http *http.Client
}

// NewClient returns a client; it connects when it is first used.
func NewClient(root string) *Client {
	socket := filepath.Join(root, SocketName)
	return &Client{root: root, http: &http.Client{Transport: &http.Transport{
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return (&net.Dialer{}).DialContext(ctx, "unix", socket)
		},
		MaxIdleConns: 2, IdleConnTimeout: 5 * time.Second,
	}}}
}

// Root is the state directory.
func (c *Client) Root() string { return c.root }

// A daemon that is leaving is soon gone, or another one.
const (
	leavingPatience = 15 * time.Second
	leavingRetry    = 20 * time.Millisecond
)

// do makes a call, again while the daemon is leaving. That it has left then is ErrNotRunning.
func (c *Client) do(ctx context.Context, method, path string, in any) (*http.Response, error) {
	deadline := time.Now().Add(leavingPatience)
	for {
		resp, err := c.once(ctx, method, path, in)
		var e *Error
		if !errors.As(err, &e) || e.Code != CodeLeaving || time.Now().After(deadline) {
			return resp, err
		}
		timer := time.NewTimer(leavingRetry)
		select {
		case <-timer.C:
		case <-ctx.Done():
			timer.Stop()
			return nil, ctx.Err()
		}
	}
}

func (c *Client) once(ctx context.Context, method, path string, in any) (*http.Response, error) {
	var body io.Reader
	if in != nil {
		b, err := json.Marshal(in)
		if err != nil {
			return nil, fmt.Errorf("encode request: %w", err)
		}
		body = bytes.NewReader(b)
	}
	req, err := http.NewRequestWithContext(ctx, method, "http://thaw"+path, body)
	if err != nil {
		return nil, fmt.Errorf("call daemon: %w", err)
	}
	resp, err := c.http.Do(req)
	var op *net.OpError
	if errors.As(err, &op) && op.Op == "dial" {
		return nil, fmt.Errorf("%w in %s", ErrNotRunning, c.root)
	}
	if err != nil {
		return nil, fmt.Errorf("call daemon: %w", err)
	}
	if resp.StatusCode >= 400 {
		defer resp.Body.Close()
		e := &Error{}
		b, _ := io.ReadAll(io.LimitReader(resp.Body, 1<<20))
		if json.Unmarshal(b, e) != nil || e.Message == "" {
			return nil, fmt.Errorf("call daemon: %s %s: %s", method, path, resp.Status)
		}
		return nil, e
	}
	return resp, nil
}

func (c *Client) call(ctx context.Context, method, path string, in, out any) error {
	resp, err := c.do(ctx, method, path, in)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if out == nil {
		return nil
	}
	if err := json.NewDecoder(resp.Body).Decode(out); err != nil {
		return fmt.Errorf("read daemon's answer: %w", err)
	}
	return nil
}

// stream makes a long call. event is called for progress and warnings.
func (c *Client) stream(ctx context.Context, path string, in, out any, event func(Event)) error {
	resp, err := c.do(ctx, http.MethodPost, path, in)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	lines := bufio.NewScanner(resp.Body)
	lines.Buffer(nil, 32<<20)
	for lines.Scan() {
		var e Event
		if err := json.Unmarshal(lines.Bytes(), &e); err != nil {
			return fmt.Errorf("read daemon's answer: %w", err)
		}
		switch {
		case e.Error != nil:
			return e.Error
		case e.Result != nil:
			return json.Unmarshal(e.Result, out)
		case event != nil:
			event(e)
		}
	}
	if err := ctx.Err(); err != nil {
		return err
	}
	if err := lines.Err(); err != nil {
		return fmt.Errorf("read daemon's answer: %w", err)
	}
	return errors.New("the daemon went away in the middle of the call")
}

// Status describes the daemon. One that ends instead of answering is not running.
func (c *Client) Status(ctx context.Context) (*Status, error) {
	var s Status
	err := c.call(ctx, http.MethodGet, "/v1/status", nil, &s)
	var broken *url.Error
	if ctx.Err() == nil && (errors.As(err, &broken) || errors.Is(err, io.ErrUnexpectedEOF)) {
		err = fmt.Errorf("%w in %s: it ended while it was asked", ErrNotRunning, c.root)
	}
	return &s, err
}

// Stop ends the daemon; force also takes away what is mounted.
func (c *Client) Stop(ctx context.Context, force bool) error {
	return c.call(ctx, http.MethodPost, fmt.Sprintf("/v1/stop?force=%t", force), nil, nil)
}

// Upgrade has the daemon become another program, by its absolute path. It returns when the daemon has agreed.
func (c *Client) Upgrade(ctx context.Context, executable string) error {
	return c.call(ctx, http.MethodPost, "/v1/upgrade", UpgradeRequest{Executable: executable}, nil)
}

// Mount makes a mount.
func (c *Client) Mount(ctx context.Context, req MountRequest, event func(Event)) (*Mount, error) {
	var m Mount
	return &m, c.stream(ctx, "/v1/mounts", req, &m, event)
}

// Inspect describes a mount as it is now.
func (c *Client) Inspect(ctx context.Context, id string) (*Mount, error) {
	var m Mount
	return &m, c.call(ctx, http.MethodGet, "/v1/mounts/"+url.PathEscape(id), nil, &m)
}

// Tell says when phases of a mount's container were over, for its recording.
func (c *Client) Tell(ctx context.Context, id string, t Times) error {
	return c.call(ctx, http.MethodPost, "/v1/mounts/"+url.PathEscape(id)+"/times", t, nil)
}

// WaitComplete returns once every layer of a mount is here and proven, or can
// not be.
func (c *Client) WaitComplete(ctx context.Context, id string) (*Mount, error) {
	var m Mount
	return &m, c.call(ctx, http.MethodGet, "/v1/mounts/"+url.PathEscape(id)+"?wait=complete", nil, &m)
}

// Hurry returns once every layer of a mount is here and proven, or can not be
// for now, and has the daemon see to it now.
func (c *Client) Hurry(ctx context.Context, id string) (*Mount, error) {
	var m Mount
	return &m, c.call(ctx, http.MethodGet, "/v1/mounts/"+url.PathEscape(id)+"?wait=hurry", nil, &m)
}

// Waits lists when reads of a mount's layers waited for bytes since the mount was asked
// for, by their begin: the last MaxWaits of each layer. Mounts that share a layer share
// its waits.
func (c *Client) Waits(ctx context.Context, id string) ([]ReadWait, error) {
	var w []ReadWait
	return w, c.call(ctx, http.MethodGet, "/v1/mounts/"+url.PathEscape(id)+"/waits", nil, &w)
}

// Unmount takes a mount away, by its id or its directory.
func (c *Client) Unmount(ctx context.Context, idOrDir string) error {
	return c.call(ctx, http.MethodDelete, "/v1/mounts?name="+url.QueryEscape(idOrDir), nil, nil)
}

// Pull brings a whole image to this node.
func (c *Client) Pull(ctx context.Context, req ImageRequest, event func(Event)) (*Pulled, error) {
	var p Pulled
	return &p, c.stream(ctx, "/v1/pull", req, &p, event)
}

// Layers lists the layers on this node.
func (c *Client) Layers(ctx context.Context) ([]Layer, error) {
	var l []Layer
	return l, c.call(ctx, http.MethodGet, "/v1/layers", nil, &l)
}

// Remove takes an image's pins away, or a layer by its blob digest, and what
// then nobody needs.
func (c *Client) Remove(ctx context.Context, name string) ([]Layer, error) {
	var l []Layer
	return l, c.call(ctx, http.MethodDelete, "/v1/layers?name="+url.QueryEscape(name), nil, &l)
}

// Unpin lets go of what an image or another owner of pins keeps.
func (c *Client) Unpin(ctx context.Context, name string) error {
	return c.call(ctx, http.MethodDelete, "/v1/pins?name="+url.QueryEscape(name), nil, nil)
}

// Why says how an image was started, or the container of a mount, and why so.
func (c *Client) Why(ctx context.Context, name string) (*Why, error) {
	var w Why
	return &w, c.call(ctx, http.MethodGet, "/v1/why?name="+url.QueryEscape(name), nil, &w)
}

// Fallbacks lists what was not started the best way, the last first.
func (c *Client) Fallbacks(ctx context.Context) ([]Fallback, error) {
	var f []Fallback
	return f, c.call(ctx, http.MethodGet, "/v1/fallbacks", nil, &f)
}

// Traces lists what starts have read, by image and command.
func (c *Client) Traces(ctx context.Context) ([]TraceInfo, error) {
	var t []TraceInfo
	return t, c.call(ctx, http.MethodGet, "/v1/traces", nil, &t)
}

// Trace returns the runs of an image and a command, merged. name is an image or
// the trace's ID.
func (c *Client) Trace(ctx context.Context, name string) (*Trace, error) {
	var t Trace
	return &t, c.call(ctx, http.MethodGet, "/v1/trace?name="+url.QueryEscape(name), nil, &t)
}

// TraceFile returns the same as a file of docs/formats/trace.md.
func (c *Client) TraceFile(ctx context.Context, name string) ([]byte, error) {
	resp, err := c.do(ctx, http.MethodGet, "/v1/trace/file?name="+url.QueryEscape(name), nil)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		return nil, fmt.Errorf("read daemon's answer: %w", err)
	}
	return b, nil
}

// RemoveTrace forgets the runs of an image, or of an image and a command by the
// trace's ID, and returns what they were.
func (c *Client) RemoveTrace(ctx context.Context, name string) ([]TraceInfo, error) {
	var t []TraceInfo
	return t, c.call(ctx, http.MethodDelete, "/v1/traces?name="+url.QueryEscape(name), nil, &t)
}

// GC removes the layers that no mount uses and no image pins.
func (c *Client) GC(ctx context.Context) ([]Layer, error) {
	var l []Layer
	return l, c.call(ctx, http.MethodPost, "/v1/gc", nil, &l)
}
