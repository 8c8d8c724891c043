package container

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"
)

const (
	readyPoll = 2 * time.Millisecond // between attempts: the precision of what is measured
	// An attempt that hangs is given up after this; each time after twice as
	// long, so that a server which really is slow is not cut off for ever.
	readyAttempt    = 250 * time.Millisecond
	readyAttemptMax = 8 * time.Second
)

// CheckReady says whether a target of [WaitReady] can be understood.
func CheckReady(target string) error {
	_, err := parseReady(target)
	return err
}

// Answers makes one attempt at a target of [WaitReady].
func Answers(ctx context.Context, target string) error {
	attempt, err := parseReady(target)
	if err != nil {
		return err
	}
	return attempt(ctx)
}

// WaitReady waits until a service answers: an http or https URL with a status
// of 2xx or 3xx (certificates are not checked, redirects not followed), or
// tcp:PORT and tcp:HOST:PORT by accepting a connection. It returns the context's
// cause when that ends first.
func WaitReady(ctx context.Context, target string) error {
	attempt, err := parseReady(target)
	if err != nil {
		return err
	}
	limit := readyAttempt
	timer := time.NewTimer(0)
	defer timer.Stop()
	var last error
	for {
		select {
		case <-ctx.Done():
			return fmt.Errorf("wait for %s: %w (last attempt: %v)", target, context.Cause(ctx), last)
		case <-timer.C:
		}
		one, cancel := context.WithTimeout(ctx, limit)
		err := attempt(one)
		timedOut := one.Err() != nil
		cancel()
		if err == nil {
			return nil
		}
		if ctx.Err() == nil {
			last = err
		}
		if timedOut {
			limit = min(2*limit, readyAttemptMax)
		}
		timer.Reset(readyPoll)
	}
}

// parseReady returns one attempt at a target.
func parseReady(target string) (func(context.Context) error, error) {
	if rest, ok := strings.CutPrefix(target, "tcp:"); ok {
		return parseReadyTCP(target, strings.TrimPrefix(rest, "//"))
	}
	u, err := url.Parse(target)
	if err != nil || u.Host == "" || u.Scheme != "http" && u.Scheme != "https" {
		return nil, fmt.Errorf("parse ready target %q: neither an http or https URL nor tcp:PORT", target)
	}
	port := u.Port()
	if port == "" {
		port = map[string]string{"http": "80", "https": "443"}[u.Scheme]
	}
	address := net.JoinHostPort(u.Hostname(), port)
	return func(ctx context.Context) error {
		// A connection of its own for each attempt: one to a server that is not up yet tells nothing of the next. Most attempts find nobody
		// who listens, and cost the machine, which starts something, no more than that.
		c, err := new(net.Dialer).DialContext(ctx, "tcp", address)
		if err != nil {
			return err
		}
		defer c.Close()
		return get(ctx, target, c)
	}, nil
}

// get makes a request over a connection.
func get(ctx context.Context, target string, c net.Conn) error {
	client := &http.Client{
		Transport: &http.Transport{
			DialContext:       func(context.Context, string, string) (net.Conn, error) { return c, nil },
			DisableKeepAlives: true,
			TLSClientConfig:   &tls.Config{InsecureSkipVerify: true}, // a probe, as the kubelet's
		},
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
	r, err := http.NewRequestWithContext(ctx, http.MethodGet, target, nil)
	if err != nil {
		return err
	}
	resp, err := client.Do(r)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	_, _ = io.CopyN(io.Discard, resp.Body, 4<<10) // be polite to a simple server; the status is what counts
	if resp.StatusCode >= 400 {
		return errors.New(resp.Status)
	}
	return nil
}

func parseReadyTCP(target, address string) (func(context.Context) error, error) {
	if !strings.Contains(address, ":") {
		address = "127.0.0.1:" + address
	}
	_, port, err := net.SplitHostPort(address)
	if err == nil {
		var n uint64
		if n, err = strconv.ParseUint(port, 10, 16); err == nil && n == 0 {
			err = errors.New("port 0")
		}
	}
	if err != nil {
		return nil, fmt.Errorf("parse ready target %q: %w", target, err)
	}
	return func(ctx context.Context) error {
		c, err := new(net.Dialer).DialContext(ctx, "tcp", address)
		if err != nil {
			return err
		}
		return c.Close()
	}, nil
}
