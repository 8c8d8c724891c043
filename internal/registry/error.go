package registry

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strings"
	"syscall"
	"time"
	"unicode"

	"github.com/opencontainers/go-digest"
)

var (
	// ErrNotFound: the registry answered that there is no such thing.
	ErrNotFound = errors.New("not found")
	// ErrUnauthorized: the credentials (or the lack of any) were refused.
	ErrUnauthorized = errors.New("unauthorized")
	// ErrNoRanges: the server sends whole blobs only and the range asked for
	// is too far into the blob to skip to. Stream the blob instead.
	ErrNoRanges = errors.New("the server does not support ranges")

	errClosed  = errors.New("the client is closed")
	errStalled = errors.New("the server stopped sending")
	errRange   = errors.New("the server sent another range than the one asked for")
	errShort   = errors.New("the body ended early")
)

// Error is the failure of one operation, after whatever retrying was worth while.
type Error struct {
	Op         string // "fetch manifest", "fetch blob", "push blob", ...
	Registry   string // host as in the reference
	Repository string
	Reference  string // tag or digest
	// Offset and Length are the range in bytes that was still missing; Length
	// is 0 for a whole object.
	Offset, Length int64
	URL            string // last URL asked, without query and user
	Status         int    // last HTTP status, 0 if no answer came
	Code           string // the registry's own error code, such as MANIFEST_UNKNOWN
	Message        string // the registry's own words, shortened
	// Retryable says that the same request may succeed later.
	Retryable  bool
	RetryAfter time.Duration // what the server asked for, 0 if it did not
	Attempts   int
	Err        error // cause; never nil when Status is 0
}

func (e *Error) Error() string {
	var b strings.Builder
	b.WriteString(e.Op)
	if e.Reference != "" {
		b.WriteString(" " + e.Reference)
	}
	if e.Length > 0 {
		fmt.Fprintf(&b, " bytes %d-%d", e.Offset, e.Offset+e.Length-1)
	}
	switch {
	case e.Repository != "":
		fmt.Fprintf(&b, " of %s/%s", e.Registry, e.Repository)
	case e.Registry != "":
		b.WriteString(" of " + e.Registry)
	}
	b.WriteString(": " + e.answer())
	if host := urlHost(e.URL); host != "" && host != e.Registry {
		b.WriteString(", from " + host)
	}
	if e.Attempts > 1 {
		fmt.Fprintf(&b, ", after %d attempts", e.Attempts)
	}
	if e.RetryAfter > 0 {
		fmt.Fprintf(&b, ", asked to wait %s", e.RetryAfter.Round(time.Second))
	}
	return b.String()
}

func (e *Error) answer() string {
	var parts []string
	if e.Status != 0 && (e.Err == nil || e.Status >= 300) {
		parts = append(parts, strings.TrimSpace(fmt.Sprintf("%d %s", e.Status, http.StatusText(e.Status))))
	}
	if s := strings.TrimSpace(e.Code + " " + e.Message); s != "" {
		parts = append(parts, s)
	}
	if e.Err != nil {
		parts = append(parts, e.Err.Error())
	}
	return strings.Join(parts, ": ")
}

func (e *Error) Unwrap() error { return e.Err }

// Is makes errors.Is(err, ErrNotFound) and ErrUnauthorized work by status.
func (e *Error) Is(target error) bool {
	switch target {
	case ErrNotFound:
		return e.Status == http.StatusNotFound || e.Status == http.StatusGone
	case ErrUnauthorized:
		return e.Status == http.StatusUnauthorized || e.Status == http.StatusForbidden
	}
	return false
}

// Retryable reports whether err is worth trying again later. Errors that are
// not of this package are not.
func Retryable(err error) bool {
	var e *Error
	return errors.As(err, &e) && e.Retryable
}

// DigestError says that bytes came which are not those the digest names.
type DigestError struct{ Want, Got digest.Digest }

func (e *DigestError) Error() string {
	return fmt.Sprintf("the bytes hash to %s, want %s", e.Got, e.Want)
}

func urlHost(s string) string {
	u, err := url.Parse(s)
	if err != nil {
		return ""
	}
	return u.Host
}

// cleanURL drops what may be secret: user, query (presigned URLs) and fragment.
func cleanURL(u *url.URL) string {
	c := url.URL{Scheme: u.Scheme, Host: u.Host, Path: u.Path}
	return c.String()
}

// retryableStatus: the server's or the network's trouble, not the request's.
func retryableStatus(code int) bool {
	switch code {
	case http.StatusRequestTimeout, http.StatusTooEarly, http.StatusTooManyRequests:
		return true
	case http.StatusNotImplemented, http.StatusHTTPVersionNotSupported:
		return false
	}
	return code >= 500
}

// answerError turns an answer nobody wanted into an Error and closes the body.
func answerError(resp *http.Response, now time.Time) *Error {
	defer resp.Body.Close()
	e := &Error{URL: cleanURL(resp.Request.URL), Status: resp.StatusCode, Retryable: retryableStatus(resp.StatusCode)}
	if d, ok := parseRetryAfter(resp.Header.Get("Retry-After"), now); ok && e.Retryable {
		e.RetryAfter = d
	}
	b, err := io.ReadAll(io.LimitReader(resp.Body, 16<<10))
	if err != nil || resp.Request.Method == http.MethodHead {
		return e
	}
	var doc struct {
		Errors []struct {
			Code    string `json:"code"`
			Message string `json:"message"`
		} `json:"errors"`
	}
	if json.Unmarshal(b, &doc) == nil && len(doc.Errors) > 0 {
		e.Code, e.Message = printable(doc.Errors[0].Code, 60), printable(doc.Errors[0].Message, 200)
		if e.Code == "TOOMANYREQUESTS" {
			e.Retryable = true
		}
	}
	return e
}

// printable makes a server's words safe to show on a terminal and in a log.
func printable(s string, maxRunes int) string {
	s = strings.Map(func(r rune) rune {
		if !unicode.IsPrint(r) {
			return ' '
		}
		return r
	}, strings.ToValidUTF8(s, "?"))
	if r := []rune(s); len(r) > maxRunes {
		s = string(r[:maxRunes]) + "..."
	}
	return strings.TrimSpace(s)
}

// transportError classifies an error that is not an answer. known says that
// the host has answered before, so that a name that does not resolve or a
// refused connection is an outage, not a typing error.
func transportError(ctx context.Context, u *url.URL, err error, known bool) *Error {
	var e *Error
	if errors.As(err, &e) { // from a RoundTripper of ours, already classified
		c := *e // it may be shared by all who waited for one token
		return &c
	}
	e = &Error{Err: err, Retryable: true}
	if u != nil {
		e.URL = cleanURL(u)
	}
	var (
		dns     *net.DNSError
		unknown x509.UnknownAuthorityError
		host    x509.HostnameError
		invalid x509.CertificateInvalidError
		verify  *tls.CertificateVerificationError
	)
	switch {
	case ctx.Err() != nil:
		e.Retryable, e.Err = false, context.Cause(ctx)
	case errors.As(err, &dns) && dns.IsNotFound:
		e.Retryable = known
	case errors.As(err, &unknown), errors.As(err, &host), errors.As(err, &invalid), errors.As(err, &verify):
		e.Retryable = false
	case errors.Is(err, http.ErrSchemeMismatch):
		e.Retryable = false
		e.Err = fmt.Errorf("%w (plain http is used for loopback hosts and those configured as insecure)", err)
	}
	return e
}

// neverUp says that the cause looks like nobody listening there at all.
func neverUp(err error) bool {
	return errors.Is(err, syscall.ECONNREFUSED) || errors.Is(err, syscall.EHOSTUNREACH) || errors.Is(err, syscall.ENETUNREACH)
}
