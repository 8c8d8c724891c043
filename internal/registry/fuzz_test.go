package registry

import (
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

func TestParseContentRange(t *testing.T) {
	tests := []struct {
		in   string
		want byteRange
		ok   bool
	}{
		{"bytes 0-99/1234", byteRange{0, 99, 1234}, true},
		{"Bytes 5-5/*", byteRange{5, 5, -1}, true},
		{"bytes 0-99/99", byteRange{}, false},
		{"bytes 9-8/99", byteRange{}, false},
		{"bytes */99", byteRange{}, false},
		{"bytes 0-9", byteRange{}, false},
		{"bytes -1-9/10", byteRange{}, false},
		{"bytes +1-9/10", byteRange{}, false},
		{"bytes 0-9223372036854775807/*", byteRange{}, false},
		{"items 0-9/10", byteRange{}, false},
		{"", byteRange{}, false},
	}
	for _, tt := range tests {
		got, err := parseContentRange(tt.in)
		if got != tt.want || (err == nil) != tt.ok {
			t.Errorf("%q: %v, %v", tt.in, got, err)
		}
	}
}

func TestParseRetryAfter(t *testing.T) {
	now := time.Date(2024, 2, 3, 4, 5, 6, 0, time.UTC)
	tests := []struct {
		in   string
		want time.Duration
		ok   bool
	}{
		{"0", 0, true},
		{" 120 ", 2 * time.Minute, true},
		{"99999999999999999999999", 24 * time.Hour, true},
		{"Sat, 03 Feb 2024 04:05:16 GMT", 10 * time.Second, true},
		{"Fri, 02 Feb 2024 04:05:16 GMT", 0, true},
		{"-5", 0, false},
		{"1.5", 0, false},
		{"soon", 0, false},
		{"", 0, false},
	}
	for _, tt := range tests {
		if got, ok := parseRetryAfter(tt.in, now); got != tt.want || ok != tt.ok {
			t.Errorf("%q: %v, %v", tt.in, got, ok)
		}
	}
}

func TestParseChallenges(t *testing.T) {
	tests := []struct {
		in   []string
		want []challenge
	}{
		{[]string{`Bearer realm="https://auth.docker.io/token",service="registry.docker.io",scope="repository:a/b:pull,push"`},
			[]challenge{{"bearer", map[string]string{"realm": "https://auth.docker.io/token", "service": "registry.docker.io", "scope": "repository:a/b:pull,push"}}}},
		{[]string{`Negotiate, Basic realm="a \"b\", c", Bearer realm=https://x/token , service=y`},
			[]challenge{{"negotiate", map[string]string{}}, {"basic", map[string]string{"realm": `a "b", c`}}, {"bearer", map[string]string{"realm": "https://x/token", "service": "y"}}}},
		{[]string{"Basic", "Bearer REALM = \"x\""}, []challenge{{"basic", map[string]string{}}, {"bearer", map[string]string{"realm": "x"}}}},
		{[]string{`Bearer realm="unterminated`}, []challenge{{"bearer", map[string]string{}}}},
		{[]string{"", ",,", "="}, nil},
	}
	for _, tt := range tests {
		if diff := cmp.Diff(tt.want, parseChallenges(tt.in), cmp.AllowUnexported(challenge{})); diff != "" {
			t.Errorf("%q (-want +got):\n%s", tt.in, diff)
		}
	}
}

func FuzzParseContentRange(f *testing.F) {
	f.Add("bytes 0-99/1234")
	f.Add("bytes 5-5/*")
	f.Fuzz(func(t *testing.T, s string) {
		r, err := parseContentRange(s)
		if err == nil && (r.start < 0 || r.length() < 1 || (r.total != -1 && r.end >= r.total)) {
			t.Errorf("%q gives %v", s, r)
		}
	})
}

func FuzzParseHeaders(f *testing.F) {
	f.Add(`Bearer realm="https://auth/token",service="x",scope="repository:a/b:pull"`)
	f.Add(`Negotiate, Basic realm="a \"b", Bearer realm=x`)
	f.Add(`</v2/x?n=1>; rel="next", <y>; rel=prev`)
	f.Add("Sat, 03 Feb 2024 04:05:16 GMT")
	base := &url.URL{Scheme: "https", Host: "example.com", Path: "/v2/"}
	f.Fuzz(func(t *testing.T, s string) {
		for _, c := range parseChallenges([]string{s, s}) {
			if c.scheme == "" || c.scheme != strings.ToLower(c.scheme) || strings.ContainsAny(c.scheme, " ,=\"") {
				t.Errorf("scheme %q", c.scheme)
			}
		}
		if d, ok := parseRetryAfter(s, time.Unix(1e9, 0)); ok && (d < 0 || d > 24*time.Hour) {
			t.Errorf("Retry-After %v", d)
		}
		parseNextLink([]string{s}, base)
	})
}

func FuzzParseToken(f *testing.F) {
	f.Add([]byte(`{"token":"abc","expires_in":300}`))
	f.Add([]byte(`{"access_token":"abc","expires_in":1e300}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		now := time.Unix(1e9, 0)
		c, err := parseToken(b, now)
		if err != nil {
			return
		}
		if c.refresh.After(c.expires) || !c.expires.After(now) || c.expires.After(now.Add(maxTokenLife)) || strings.ContainsAny(c.header, "\r\n") {
			t.Errorf("%q gives %+v", b, c)
		}
	})
}
