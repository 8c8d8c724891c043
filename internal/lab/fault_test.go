package lab

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/google/go-containerregistry/pkg/name"
	ggcr "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/validate"
)

func TestParseFault(t *testing.T) {
	good := map[string]Fault{
		"reset":                            {Kind: Reset},
		"reset=64KB":                       {Kind: Reset, Arg: "64KB"},
		"429=3s,first=2":                   {Kind: TooMany, Arg: "3s", First: 2},
		"5xx=502,every=3":                  {Kind: ServerError, Arg: "502", Every: 3},
		"flip=@1MiB,match=/blobs/sha256:a": {Kind: Flip, Arg: "@1MiB", Match: "/blobs/sha256:a"},
		"flip=/4096,after=1,first=5,every=2": {
			Kind: Flip, Arg: "/4096", After: 1, First: 5, Every: 2},
		"stall=64KB:2s,match=a{1,2}": {Kind: Stall, Arg: "64KB:2s", Match: "a{1,2}"},
		"token=2s:me:pass:word":      {Kind: Token, Arg: "2s:me:pass:word"},
		"401,match=^/token":          {Kind: Unauthorized, Match: "^/token"},
		"web-page":                   {Kind: WebPage},
		"wrong-range=lie:512":        {Kind: WrongRange, Arg: "lie:512"},
	}
	for text, want := range good {
		got, err := ParseFault(text)
		if err != nil {
			t.Errorf("%s: %v", text, err)
			continue
		}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("%s: %s", text, diff)
		}
		if got.String() != text {
			t.Errorf("%s is written %s", text, got)
		}
	}
	for _, text := range []string{"", "boom", "reset=x", "429=soon", "5xx=404", "flip=/0", "stall=1:x", "reset,every=x", "reset,often=1", "reset,match=("} {
		if _, err := ParseFault(text); err == nil {
			t.Errorf("%q is accepted", text)
		}
	}
}

// setFaults sets them as a user does, over HTTP.
func setFaults(t *testing.T, s *Server, faults ...string) {
	t.Helper()
	b, err := json.Marshal(faults)
	if err != nil {
		t.Fatal(err)
	}
	resp, err := do(t, http.MethodPost, "http://"+s.Addr()+"/faults", nil, b)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusNoContent {
		message, _ := io.ReadAll(resp.Body)
		t.Fatalf("%s: %s", resp.Status, message)
	}
}

// TestFaultsOfBlobs has the same blob and range asked for under each fault.
func TestFaultsOfBlobs(t *testing.T) {
	s := newServer(t, Options{})
	body := randomBytes(1 << 20)
	at := blobURL(s, pushBlob(t, s, body))
	const from, to = 1000, 300_999
	want := body[from : to+1]
	flipped := func(at ...int) []byte {
		b := bytes.Clone(want)
		for _, i := range at {
			b[i] ^= 0xff
		}
		return b
	}
	cases := []struct {
		fault  string
		status int
		body   []byte // nil: not looked at
		err    error
		header map[string]string
	}{
		{"reset=100KB", 206, want[:100_000], syscall.ECONNRESET, nil},
		{"short", 206, want[:300_000-1], io.ErrUnexpectedEOF, nil},
		{"short=50KB", 206, want[:250_000], io.ErrUnexpectedEOF, nil},
		{"429=3s", 429, nil, nil, map[string]string{"Retry-After": "3"}},
		{"5xx", 503, nil, nil, map[string]string{"Retry-After": "1"}},
		{"5xx=502", 502, nil, nil, map[string]string{"Retry-After": ""}},
		{"404", 404, nil, nil, nil},
		{"wrong-range=512", 206, body[from+512 : to+513], nil, map[string]string{"Content-Range": "bytes 1512-301511/1048576"}},
		{"wrong-range=lie:512", 206, body[from+512 : to+513], nil, map[string]string{"Content-Range": "bytes 1000-300999/1048576"}},
		{"no-ranges", 200, body, nil, map[string]string{"Content-Range": "", "Accept-Ranges": ""}},
		{"flip=7", 206, flipped(7), nil, nil},
		{"flip=@1009", 206, flipped(9), nil, nil},
		{"flip=@999", 206, want, nil, nil},
		{"flip=/100000", 206, flipped(99_999, 199_999, 299_999), nil, nil},
		{"stall=10KB:10ms", 206, want, nil, nil},
		{"delay=10ms", 206, want, nil, nil},
		{"redirect", 206, want, nil, nil},
	}
	for _, c := range cases {
		t.Run(c.fault, func(t *testing.T) {
			setFaults(t, s, c.fault)
			s.ResetStats()
			resp, got, err := fetch(t, at, ranged(fmt.Sprintf("bytes=%d-%d", from, to)))
			if !errors.Is(err, c.err) {
				t.Fatalf("error %v, want %v", err, c.err)
			}
			if resp.StatusCode != c.status {
				t.Errorf("status %d, want %d", resp.StatusCode, c.status)
			}
			if c.body != nil && !bytes.Equal(got, c.body) {
				t.Errorf("wrong body of %d bytes, want %d", len(got), len(c.body))
			}
			for key, value := range c.header {
				if got := resp.Header.Get(key); got != value {
					t.Errorf("%s %q, want %q", key, got, value)
				}
			}
			kind, _, _ := strings.Cut(c.fault, "=")
			count := int64(1)
			if c.fault == "flip=@999" {
				count = 0 // outside of the range
			}
			if n := s.Stats().Faults[kind]; n != count {
				t.Errorf("%d faults counted, want %d", n, count)
			}
		})
	}
}

func TestResetBeforeTheHeader(t *testing.T) {
	s := newServer(t, Options{})
	at := blobURL(s, pushBlob(t, s, randomBytes(100)))
	setFaults(t, s, "reset")
	// The transport retries a GET on a reused connection, so take a new one.
	http.DefaultClient.CloseIdleConnections()
	if _, _, err := fetch(t, at, nil); err == nil {
		t.Error("no error")
	}
}

func TestStallLastsUntilTheClientLeaves(t *testing.T) {
	s := newServer(t, Options{})
	body := randomBytes(200_000)
	at := blobURL(s, pushBlob(t, s, body))
	setFaults(t, s, "stall=100KB")
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	r, err := http.NewRequestWithContext(ctx, http.MethodGet, at, nil)
	if err != nil {
		t.Fatal(err)
	}
	resp, err := http.DefaultClient.Do(r)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	got := make([]byte, 100_000)
	if _, err := io.ReadFull(resp.Body, got); err != nil || !bytes.Equal(got, body[:100_000]) {
		t.Fatalf("bytes before the stall: %v", err)
	}
	cancel()
	if _, err := resp.Body.Read(got); !errors.Is(err, context.Canceled) {
		t.Errorf("read in the stall: %v", err)
	}
}

func TestWhichRequestsAreHit(t *testing.T) {
	s := newServer(t, Options{})
	at := blobURL(s, pushBlob(t, s, randomBytes(100)))
	cases := []struct {
		fault string
		want  []int
	}{
		{"429,first=2", []int{429, 429, 200, 200, 200, 200}},
		{"429,every=3", []int{200, 200, 429, 200, 200, 429}},
		{"429,after=1,first=4,every=2", []int{200, 200, 429, 200, 429, 200}},
		{"429,match=/manifests/", []int{200, 200, 200, 200, 200, 200}},
		{"429,first=1,match=/blobs/sha256:[0-9a-f]{64,64}$", []int{429, 200, 200, 200, 200, 200}},
	}
	for _, c := range cases {
		setFaults(t, s, c.fault)
		var got []int
		for range c.want {
			resp, _, err := fetch(t, at, nil)
			if err != nil {
				t.Fatal(err)
			}
			got = append(got, resp.StatusCode)
		}
		if diff := cmp.Diff(c.want, got); diff != "" {
			t.Errorf("%s: %s", c.fault, diff)
		}
	}
}

// TestTokens pulls with tokens, from a library that knows the dance.
func TestTokens(t *testing.T) {
	s := newServer(t, Options{Dir: testLayout(t, map[string]ggcr.Image{"app": randomImage(t)})})
	setFaults(t, s, "token=1m:user:secret")
	ref, err := name.ParseReference(s.Addr() + "/app")
	if err != nil {
		t.Fatal(err)
	}
	pullAs := func(auth authn.Authenticator) error {
		img, err := remote.Image(ref, remote.WithTransport(http.DefaultTransport), remote.WithAuth(auth))
		if err != nil {
			return err
		}
		return validate.Image(img)
	}
	if err := pullAs(&authn.Basic{Username: "user", Password: "secret"}); err != nil {
		t.Error(err)
	}
	if err := pullAs(&authn.Basic{Username: "user", Password: "wrong"}); err == nil {
		t.Error("wrong password: no error")
	}
	if err := pullAs(authn.Anonymous); err == nil {
		t.Error("anonymous: no error")
	}
	if s.Stats().Kinds[kindToken].Requests == 0 {
		t.Error("no token asked for")
	}
}

func TestTokensExpireAndHaveAScope(t *testing.T) {
	s := newServer(t, Options{})
	at := blobURL(s, pushBlob(t, s, randomBytes(100)))
	token := func(scope string) http.Header {
		t.Helper()
		_, b, err := fetch(t, "http://"+s.Addr()+"/token?service=x&scope="+scope, nil)
		if err != nil {
			t.Fatal(err)
		}
		var answer struct{ Token string }
		if err := json.Unmarshal(b, &answer); err != nil {
			t.Fatal(err)
		}
		return http.Header{"Authorization": {"Bearer " + answer.Token}}
	}
	status := func(header http.Header) int {
		t.Helper()
		resp, _, err := fetch(t, at, header)
		if err != nil {
			t.Fatal(err)
		}
		if challenge := resp.Header.Get("WWW-Authenticate"); resp.StatusCode == 401 && !strings.Contains(challenge, `scope="repository:test:pull"`) {
			t.Errorf("challenge %q", challenge)
		}
		return resp.StatusCode
	}
	setFaults(t, s, "token")
	for scope, want := range map[string]int{
		"repository:test:pull":       200,
		"repository:test:pull,push":  200,
		"repository:other:pull":      401,
		"repository:test:push":       401,
		"":                           401,
		"repository:testtest:pull":   401,
		"repository:a/test:pull,foo": 401,
	} {
		if got := status(token(scope)); got != want {
			t.Errorf("scope %q: status %d, want %d", scope, got, want)
		}
	}
	if got := status(nil); got != 401 {
		t.Errorf("without a token: %d", got)
	}
	setFaults(t, s, "token=1us")
	if got := status(token("repository:test:pull")); got != 401 {
		t.Errorf("with an expired token: %d", got)
	}
}

func TestRedirectsAreSigned(t *testing.T) {
	s := newServer(t, Options{})
	body := randomBytes(1000)
	at := blobURL(s, pushBlob(t, s, body))
	follow := func() string {
		t.Helper()
		r, err := http.NewRequestWithContext(t.Context(), http.MethodGet, at, nil)
		if err != nil {
			t.Fatal(err)
		}
		resp, err := http.DefaultTransport.RoundTrip(r)
		if err != nil {
			t.Fatal(err)
		}
		resp.Body.Close()
		if resp.StatusCode != http.StatusTemporaryRedirect {
			t.Fatalf("status %s", resp.Status)
		}
		return resp.Header.Get("Location")
	}
	setFaults(t, s, "redirect")
	to := follow()
	if resp, b, err := fetch(t, to, nil); err != nil || resp.StatusCode != 200 || !bytes.Equal(b, body) {
		t.Errorf("signed URL: %v", err)
	}
	for what, refused := range map[string]struct {
		url    string
		header http.Header
		status int
	}{
		"credentials":  {to, http.Header{"Authorization": {"Bearer x"}}, 400},
		"another blob": {strings.Replace(to, "sha256:", "sha256:0", 1), nil, 403},
		"no signature": {to[:strings.Index(to, "?")], nil, 403},
	} {
		resp, _, err := fetch(t, refused.url, refused.header)
		if err != nil {
			t.Fatal(err)
		}
		if resp.StatusCode != refused.status {
			t.Errorf("%s: status %d, want %d", what, resp.StatusCode, refused.status)
		}
	}
	// Faults of the body come with the bytes, not with the redirect.
	setFaults(t, s, "redirect", "flip=0,first=1")
	if _, b, err := fetch(t, follow(), nil); err != nil || b[0] != body[0]^0xff {
		t.Errorf("flip at the signed URL: %v", err)
	}
	setFaults(t, s, "redirect=1us")
	if resp, _, err := fetch(t, follow(), nil); err != nil || resp.StatusCode != 403 {
		t.Errorf("expired URL: %v %v", resp, err)
	}
	want := map[string]int64{"redirect": 3}
	s.ResetStats()
	for range 3 {
		follow()
	}
	if diff := cmp.Diff(want, s.Stats().Faults); diff != "" {
		t.Error(diff)
	}
}

func TestDelayIsBeforeTheFirstByte(t *testing.T) {
	s := newServer(t, Options{})
	at := blobURL(s, pushBlob(t, s, randomBytes(100)))
	setFaults(t, s, "delay=30ms")
	start := time.Now()
	if _, _, err := fetch(t, at, nil); err != nil {
		t.Fatal(err)
	}
	if took := time.Since(start); took < 30*time.Millisecond {
		t.Errorf("answered after %v", took)
	}
}

func TestBadFaultsAreRefused(t *testing.T) {
	s := newServer(t, Options{})
	resp, err := do(t, http.MethodPost, "http://"+s.Addr()+"/faults", nil, []byte(`["boom"]`))
	if err != nil {
		t.Fatal(err)
	}
	resp.Body.Close()
	if resp.StatusCode != http.StatusBadRequest {
		t.Errorf("status %s", resp.Status)
	}
	setFaults(t, s, "flip=/7,every=2", "429")
	_, b, err := fetch(t, "http://"+s.Addr()+"/faults", nil)
	if err != nil {
		t.Fatal(err)
	}
	if got, want := string(b), `["flip=/7,every=2","429"]`; got != want {
		t.Errorf("faults %s, want %s", got, want)
	}
}

func FuzzParseFault(f *testing.F) {
	for _, seed := range []string{"reset=64KB,every=3", "stall=1:2s", "flip=/7,match=a,b", "token=1s:a:b", "wrong-range=lie:1GiB"} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, text string) {
		fault, err := ParseFault(text)
		if err != nil {
			return
		}
		again, err := ParseFault(fault.String())
		if err != nil {
			t.Fatalf("%q is written %q: %v", text, fault, err)
		}
		if diff := cmp.Diff(fault, again); diff != "" {
			t.Errorf("%q: %s", text, diff)
		}
	})
}
