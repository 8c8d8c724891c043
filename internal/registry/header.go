package registry

import (
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"
)

// byteRange is a parsed Content-Range: bytes [start, end] inclusive of total,
// which is -1 when the server did not say.
type byteRange struct{ start, end, total int64 }

func (r byteRange) length() int64 { return r.end - r.start + 1 }

// parseContentRange parses "bytes 0-99/1234" (RFC 9110, 14.4).
func parseContentRange(s string) (byteRange, error) {
	fail := func(why string) (byteRange, error) {
		return byteRange{}, fmt.Errorf("parse Content-Range %.100q: %s", s, why)
	}
	unit, rest, ok := strings.Cut(s, " ")
	if !ok || !strings.EqualFold(unit, "bytes") {
		return fail("want \"bytes START-END/TOTAL\"")
	}
	span, total, ok1 := strings.Cut(rest, "/")
	first, last, ok2 := strings.Cut(span, "-")
	if !ok1 || !ok2 {
		return fail("want \"bytes START-END/TOTAL\"")
	}
	r := byteRange{total: -1}
	var err1, err2, err3 error
	r.start, err1 = parseSize(first)
	r.end, err2 = parseSize(last)
	if total != "*" {
		r.total, err3 = parseSize(total)
	}
	if err := errors.Join(err1, err2, err3); err != nil {
		return fail("not numbers")
	}
	if r.end < r.start || (r.total >= 0 && r.end >= r.total) {
		return fail("the range is not within itself")
	}
	return r, nil
}

// parseSize takes digits only: no sign, no space.
func parseSize(s string) (int64, error) {
	if s == "" || s[0] < '0' || s[0] > '9' {
		return 0, fmt.Errorf("parse size %.40q", s)
	}
	n, err := strconv.ParseInt(s, 10, 64)
	if err == nil && n > 1<<62 {
		return 0, fmt.Errorf("parse size %.40q: out of range", s)
	}
	return n, err
}

// parseRetryAfter parses seconds or an HTTP date (RFC 9110, 10.2.3). The
// result is between 0 and a day.
func parseRetryAfter(s string, now time.Time) (time.Duration, bool) {
	const day = 24 * time.Hour
	s = strings.TrimSpace(s)
	if s == "" {
		return 0, false
	}
	if secs, err := strconv.ParseUint(s, 10, 63); err == nil {
		if secs > uint64(day/time.Second) {
			return day, true
		}
		return time.Duration(secs) * time.Second, true
	} else if errors.Is(err, strconv.ErrRange) {
		return day, true
	}
	t, err := http.ParseTime(s)
	if err != nil {
		return 0, false
	}
	return min(max(0, t.Sub(now)), day), true
}

// parseNextLink finds the target of rel="next" in Link headers (RFC 8288),
// resolved against base; nil if there is none.
func parseNextLink(headers []string, base *url.URL) *url.URL {
	for _, h := range headers {
		for h != "" {
			start := strings.IndexByte(h, '<')
			end := strings.IndexByte(h, '>')
			if start < 0 || end < start {
				break
			}
			target, params := h[start+1:end], h[end+1:]
			h = ""
			if i := strings.Index(params, ",<"); i >= 0 {
				params, h = params[:i], params[i+1:]
			} else if i := strings.Index(params, ", <"); i >= 0 {
				params, h = params[:i], params[i+2:]
			}
			if !hasRelNext(params) {
				continue
			}
			if u, err := base.Parse(target); err == nil {
				return u
			}
		}
	}
	return nil
}

func hasRelNext(params string) bool {
	for p := range strings.SplitSeq(params, ";") {
		k, v, _ := strings.Cut(strings.TrimSpace(p), "=")
		if strings.EqualFold(strings.TrimSpace(k), "rel") && strings.EqualFold(strings.Trim(strings.TrimSpace(v), `"`), "next") {
			return true
		}
	}
	return false
}

// challenge is one of a 401's WWW-Authenticate challenges (RFC 9110, 11.6.1).
// Scheme and parameter names are lower case.
type challenge struct {
	scheme string
	params map[string]string
}

// parseChallenges parses all challenges of all headers; what it cannot parse
// ends that header. A header may hold several challenges, and a quoted value
// may hold commas.
func parseChallenges(headers []string) []challenge {
	var out []challenge
	for _, s := range headers {
		out = appendChallenges(out, s)
	}
	return out
}

func appendChallenges(out []challenge, s string) []challenge {
	const maxChallenges, maxParams = 16, 32
	for len(out) < maxChallenges {
		s = strings.TrimLeft(s, " \t,")
		var scheme string
		if scheme, s = cutToken(s); scheme == "" {
			return out
		}
		c := challenge{scheme: strings.ToLower(scheme), params: map[string]string{}}
		for len(c.params) < maxParams {
			rest := strings.TrimLeft(s, " \t,")
			key, after := cutToken(rest)
			after = strings.TrimLeft(after, " \t")
			if key == "" || !strings.HasPrefix(after, "=") {
				break // a new challenge, or the end
			}
			value, after, ok := cutValue(strings.TrimLeft(after[1:], " \t"))
			if !ok {
				return append(out, c)
			}
			c.params[strings.ToLower(key)] = value
			s = after
		}
		out = append(out, c)
	}
	return out
}

func cutToken(s string) (token, rest string) {
	i := 0
	for i < len(s) && isTokenByte(s[i]) {
		i++
	}
	return s[:i], s[i:]
}

func isTokenByte(c byte) bool {
	return c > ' ' && c < 0x7f && !strings.ContainsRune("\"(),/:;<=>?@[\\]{}", rune(c))
}

// cutValue takes a token or a quoted string off s. Tokens here may hold / and :
// because some registries do not quote their realm.
func cutValue(s string) (value, rest string, ok bool) {
	if !strings.HasPrefix(s, `"`) {
		i := strings.IndexAny(s, ", \t")
		if i < 0 {
			i = len(s)
		}
		return s[:i], s[i:], i > 0
	}
	var b strings.Builder
	for i := 1; i < len(s); i++ {
		switch s[i] {
		case '"':
			return b.String(), s[i+1:], true
		case '\\':
			i++
			if i == len(s) {
				return "", "", false
			}
			b.WriteByte(s[i])
		default:
			b.WriteByte(s[i])
		}
	}
	return "", "", false
}
