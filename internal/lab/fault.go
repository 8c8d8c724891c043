package lab

import (
	"fmt"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	"github.com/docker/go-units"
)

// Kinds of faults. ARG is optional; BYTES are like 64KB or 1MiB, D like 2s.
const (
	// Reset closes the connection with an RST after BYTES of the body; without
	// BYTES before the answer's header.
	Reset = "reset"
	// TooMany answers 429 with Retry-After D (default 1s; 0s: without).
	TooMany = "429"
	// ServerError answers 503 with Retry-After 1, or the status ARG (500..599).
	ServerError = "5xx"
	// Unauthorized answers 401 without a challenge; match=^/token refuses tokens.
	Unauthorized = "401"
	// WebPage answers 200 and HTML, as a captive portal or a broken proxy does.
	WebPage = "web-page"
	// NotFound answers 404; with match=/referrers/ a registry without that API.
	NotFound = "404"
	// WrongRange answers a range that starts BYTES (default 1) further on and says
	// so; with ARG lie, or lie:BYTES, the header names the range that was asked for.
	WrongRange = "wrong-range"
	// NoRanges answers 200 and the whole blob whatever range was asked for.
	NoRanges = "no-ranges"
	// Flip inverts one byte: at BYTES into the body (default 0), @BYTES into the
	// blob whichever range it comes by, or /N every Nth byte of the body.
	Flip = "flip"
	// Stall stops sending after BYTES (default 0) of the body; ARG is D, BYTES or
	// BYTES:D. Without D it lasts until the client or the server gives up.
	Stall = "stall"
	// Token demands bearer tokens of the realm /token, which expire after D
	// (default 60s); D:USER:PASSWORD makes the realm demand those.
	Token = "token"
	// Redirect answers GETs of blobs with a 307 to a signed URL on another port,
	// valid for D (default 60s), where an Authorization header is refused.
	Redirect = "redirect"
	// Short ends the body BYTES (default 1) before its Content-Length.
	Short = "short"
	// Delay adds D (default 1s) to the time to first byte.
	Delay = "delay"
)

var kinds = []string{Reset, TooMany, ServerError, NotFound, WrongRange, NoRanges, Flip, Stall, Token, Redirect, Short, Delay, Unauthorized, WebPage}

// onBlobs are the kinds that without a match concern the bytes of blobs only;
// the others concern every request of the registry API.
var onBlobs = []string{Reset, WrongRange, NoRanges, Flip, Stall, Redirect, Short}

// Fault is something wrong with some answers. Its text form is
//
//	KIND[=ARG][,after=N][,first=N][,every=N][,match=REGEX]
//
// where of the requests that match, the first After are spared, then First are
// hit (0: all), and of these every Every-th. Match is searched for in the path,
// and comes last since it may hold commas.
type Fault struct {
	Kind, Arg           string
	After, First, Every int64
	Match               string
}

// ParseFault reads the text form.
func ParseFault(s string) (Fault, error) {
	var f Fault
	rest, match, _ := strings.Cut(s, ",match=")
	f.Match = match
	head, options, _ := strings.Cut(rest, ",")
	f.Kind, f.Arg, _ = strings.Cut(head, "=")
	if options != "" {
		for option := range strings.SplitSeq(options, ",") {
			key, value, _ := strings.Cut(option, "=")
			n, err := strconv.ParseInt(value, 10, 64)
			if err != nil || n < 0 {
				return Fault{}, fmt.Errorf("parse fault %q: option %q is not KEY=NUMBER", s, option)
			}
			switch key {
			case "after":
				f.After = n
			case "first":
				f.First = n
			case "every":
				f.Every = n
			default:
				return Fault{}, fmt.Errorf("parse fault %q: unknown option %q", s, key)
			}
		}
	}
	if _, err := f.activate(); err != nil {
		return Fault{}, err
	}
	return f, nil
}

// String returns the text form.
func (f Fault) String() string {
	var b strings.Builder
	b.WriteString(f.Kind)
	if f.Arg != "" {
		b.WriteString("=" + f.Arg)
	}
	for _, o := range []struct {
		key string
		n   int64
	}{{"after", f.After}, {"first", f.First}, {"every", f.Every}} {
		if o.n > 0 {
			fmt.Fprintf(&b, ",%s=%d", o.key, o.n)
		}
	}
	if f.Match != "" {
		b.WriteString(",match=" + f.Match)
	}
	return b.String()
}

// MarshalText implements [encoding.TextMarshaler].
func (f Fault) MarshalText() ([]byte, error) { return []byte(f.String()), nil }

// UnmarshalText implements [encoding.TextUnmarshaler].
func (f *Fault) UnmarshalText(b []byte) (err error) {
	*f, err = ParseFault(string(b))
	return err
}

// activeFault is a Fault with its argument understood, and its count.
type activeFault struct {
	Fault
	match     *regexp.Regexp
	sizeBytes int64 // reset, wrong-range, flip, stall, short; -1 for reset before the header
	wait      time.Duration
	status    int
	lie       bool  // wrong-range
	inBlob    bool  // flip: sizeBytes is an offset in the blob
	nth       int64 // flip: every nth byte
	user      string
	password  string

	seen atomic.Int64
}

func (f Fault) activate() (*activeFault, error) {
	a := &activeFault{Fault: f}
	if !slices.Contains(kinds, f.Kind) {
		return nil, fmt.Errorf("parse fault %q: unknown kind, not one of %v", f, kinds)
	}
	if f.Match != "" {
		re, err := regexp.Compile(f.Match)
		if err != nil {
			return nil, fmt.Errorf("parse fault %q: %w", f, err)
		}
		a.match = re
	}
	if err := a.parseArg(); err != nil {
		return nil, fmt.Errorf("parse fault %q: %w", f, err)
	}
	return a, nil
}

func (a *activeFault) parseArg() (err error) {
	arg := a.Arg
	switch a.Kind {
	case Reset:
		a.sizeBytes, err = parseBytes(arg, -1)
	case Short:
		a.sizeBytes, err = parseBytes(arg, 1)
	case WrongRange:
		if rest, ok := strings.CutPrefix(arg, "lie"); ok {
			a.lie, arg = true, strings.TrimPrefix(rest, ":")
		}
		a.sizeBytes, err = parseBytes(arg, 1)
	case Flip:
		if n, ok := strings.CutPrefix(arg, "/"); ok {
			if a.nth, err = strconv.ParseInt(n, 10, 64); err == nil && a.nth < 1 {
				err = fmt.Errorf("every %dth byte", a.nth)
			}
			return err
		}
		arg, a.inBlob = strings.CutPrefix(arg, "@")
		a.sizeBytes, err = parseBytes(arg, 0)
	case Stall:
		size, wait, both := strings.Cut(arg, ":")
		if !both {
			if a.wait, err = time.ParseDuration(arg); err == nil {
				return nil
			}
		} else if a.wait, err = time.ParseDuration(wait); err != nil {
			return err
		}
		a.sizeBytes, err = parseBytes(size, 0)
	case TooMany, Delay:
		a.status = 429
		a.wait, err = parseDuration(arg, time.Second)
	case Token:
		wait, login, _ := strings.Cut(arg, ":")
		a.user, a.password, _ = strings.Cut(login, ":")
		a.wait, err = parseDuration(wait, time.Minute)
	case Redirect:
		a.wait, err = parseDuration(arg, time.Minute)
	case ServerError:
		a.status = 503
		if arg != "" {
			a.status, err = strconv.Atoi(arg)
		}
		if err == nil && (a.status < 500 || a.status > 599) {
			err = fmt.Errorf("status %d", a.status)
		}
	case NotFound:
		a.status = 404
	case Unauthorized:
		a.status = 401
	}
	return err
}

func parseBytes(s string, otherwise int64) (int64, error) {
	if s == "" {
		return otherwise, nil
	}
	parse := units.FromHumanSize
	if strings.Contains(s, "i") {
		parse = units.RAMInBytes
	}
	return parse(s)
}

func parseDuration(s string, otherwise time.Duration) (time.Duration, error) {
	if s == "" {
		return otherwise, nil
	}
	return time.ParseDuration(s)
}

// hits counts a request that may be concerned, and decides.
func (a *activeFault) hits(req request) bool {
	switch {
	case slices.Contains([]string{WrongRange, NoRanges}, a.Kind) && !req.blob,
		a.Kind == Redirect && (!req.blob || req.signed),
		a.Kind == Token && (req.signed || req.kind == kindToken):
		return false
	case a.match != nil && !a.match.MatchString(req.path):
		return false
	case a.match == nil && slices.Contains(onBlobs, a.Kind) && !req.blob:
		return false
	case a.match == nil && req.kind == kindToken:
		return false
	}
	n := a.seen.Add(1) - a.After
	if n <= 0 || a.First > 0 && n > a.First {
		return false
	}
	return a.Every <= 1 || n%a.Every == 0
}

// picked are the faults one answer has.
type picked struct{ faults []*activeFault }

func (p *picked) get(kind string) *activeFault {
	for _, a := range p.faults {
		if a.Kind == kind {
			return a
		}
	}
	return nil
}

func (p *picked) has(kind string) bool { return p.get(kind) != nil }

// pick decides which faults the answer to a request gets. A redirected GET gets
// no faults of the body: those are for the host it leads to.
func (s *Server) pick(req request) *picked {
	s.faultsMu.RLock()
	defer s.faultsMu.RUnlock()
	p := &picked{}
	redirected := false
	for _, a := range s.faults {
		if a.Kind == Redirect && a.hits(req) {
			p.faults = append(p.faults, a)
			redirected = true
		}
	}
	for _, a := range s.faults {
		if a.Kind == Redirect || redirected && slices.Contains(onBlobs, a.Kind) {
			continue
		}
		if a.hits(req) {
			p.faults = append(p.faults, a)
		}
	}
	return p
}

// SetFaults replaces the faults and starts their counts anew.
func (s *Server) SetFaults(faults []Fault) error {
	active := make([]*activeFault, 0, len(faults))
	for _, f := range faults {
		a, err := f.activate()
		if err != nil {
			return err
		}
		active = append(active, a)
	}
	s.faultsMu.Lock()
	defer s.faultsMu.Unlock()
	s.faults = active
	return nil
}

// Faults returns the active faults.
func (s *Server) Faults() []Fault {
	s.faultsMu.RLock()
	defer s.faultsMu.RUnlock()
	out := make([]Fault, 0, len(s.faults))
	for _, a := range s.faults {
		out = append(out, a.Fault)
	}
	return out
}
