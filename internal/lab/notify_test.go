package lab

import (
	"encoding/json"
	"io"
	"net/http"
	"net/http/httptest"
	"sync/atomic"
	"testing"

	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/v1/random"
	"github.com/google/go-containerregistry/pkg/v1/remote"
)

// TestNotify: every push is told of, in order, until it is taken.
func TestNotify(t *testing.T) {
	type told struct {
		header http.Header
		body   []byte
	}
	heard, refused := make(chan told, 100), atomic.Int32{}
	hook := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		b, _ := io.ReadAll(r.Body)
		if refused.Add(1) <= 2 {
			w.WriteHeader(http.StatusServiceUnavailable)
			return
		}
		heard <- told{r.Header, b}
		w.WriteHeader(http.StatusAccepted)
	}))
	defer hook.Close()
	s, err := New(Options{Notify: []Endpoint{{URL: hook.URL, Authorization: "Bearer x"}}})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	img, err := random.Image(1000, 2)
	if err != nil {
		t.Fatal(err)
	}
	ref, err := name.ParseReference(s.Addr() + "/team/app:7")
	if err != nil {
		t.Fatal(err)
	}
	if err := remote.Write(ref, img, remote.WithContext(t.Context())); err != nil {
		t.Fatal(err)
	}
	want, err := img.Digest()
	if err != nil {
		t.Fatal(err)
	}
	for blobs := 0; ; {
		got := <-heard
		var doc struct{ Events []event }
		if err := json.Unmarshal(got.body, &doc); err != nil || len(doc.Events) != 1 {
			t.Fatalf("%s, %v", got.body, err)
		}
		e := doc.Events[0]
		if got.header.Get("Authorization") != "Bearer x" || got.header.Get("Content-Type") != mediaTypeEvents || e.Action != "push" || e.Target.Repository != "team/app" || e.Request.Host != s.Addr() {
			t.Errorf("header %v, event %+v", got.header, e)
		}
		if e.Target.Tag == "" {
			blobs++
			continue
		}
		if blobs != 3 || e.Target.Digest != want.String() || e.Target.Tag != "7" || e.Target.URL != "http://"+s.Addr()+"/v2/team/app/manifests/"+want.String() || e.Target.MediaType == "" || e.Target.Size == 0 {
			t.Errorf("after %d blobs %+v", blobs, e)
		}
		return
	}
}
