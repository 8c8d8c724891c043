package api

import (
	"context"
	"net"
	"net/http"
	"path/filepath"
	"testing"
	"time"
)

// FuzzAnswers: whatever answers on the socket, each call returns, with a result or
// an error.
func FuzzAnswers(f *testing.F) {
	f.Add(200, []byte(`{"progress":{"step":"pull","done":1,"total":2}}`+"\n"+`{"result":{"id":"x","phases":[{"name":"a"}]}}`+"\n"))
	f.Add(200, []byte(`{"error":{"message":"no","code":"in-use"}}`))
	f.Add(409, []byte(`{"message":"no","hint":"try","code":"in-use"}`))
	f.Add(200, []byte(`[{"blob":"sha256:x","pins":null}]`))
	f.Add(500, []byte("\n\n\n"))
	root := f.TempDir()
	l, err := net.Listen("unix", filepath.Join(root, SocketName))
	if err != nil {
		f.Fatal(err)
	}
	var status int
	var body []byte
	srv := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.WriteHeader(status)
		w.Write(body)
	})}
	go srv.Serve(l)
	f.Cleanup(func() { srv.Close() })
	c := NewClient(root)
	f.Fuzz(func(t *testing.T, s int, b []byte) {
		if s < 200 || s > 599 || s == http.StatusNoContent || s == http.StatusNotModified || s >= 300 && s < 400 {
			return
		}
		status, body = s, b
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		calls := map[string]func() error{
			"mount":  func() error { _, err := c.Mount(ctx, MountRequest{}, func(Event) {}); return err },
			"pull":   func() error { _, err := c.Pull(ctx, ImageRequest{}, nil); return err },
			"status": func() error { _, err := c.Status(ctx); return err },
			"layers": func() error { _, err := c.Layers(ctx); return err },
			"remove": func() error { _, err := c.Remove(ctx, "a/b?c"); return err },
			"wait":   func() error { _, err := c.WaitComplete(ctx, "../x"); return err },
		}
		for name, call := range calls {
			if err := call(); s >= 400 && err == nil {
				t.Errorf("%s: no error for status %d", name, s)
			}
		}
		if ctx.Err() != nil {
			t.Error("a call did not end")
		}
	})
}
