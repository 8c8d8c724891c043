// Package criproxy stands between the kubelet and containerd's image service
// (kubelet --image-service-endpoint) to see the credentials that pulls are made
// with: containerd does not hand them to its snapshotters.
//
// Its model: CRI is gRPC, and gRPC is HTTP/2. So the proxy is an HTTP/2 reverse
// proxy between two unix sockets that forwards every call as it is, whatever it
// says. Of the one call PullImage it reads the request on the way, offers what it
// says to an [Offers], and tells that from the answer whether the pull was good.
// What it does not understand it forwards.
//
// It links no gRPC and no CRI: it outlives their versions, and costs thaw's start
// nothing.
package criproxy

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httputil"
	"os"
	"strings"
	"time"

	"github.com/google/go-containerregistry/pkg/authn"

	"github.com/thaw-project/thaw/internal/oci"
)

// Offers takes what a pull of a repository ("host/path") is made with, and is told
// once how it ended.
type Offers interface {
	Offer(repository string, auth authn.AuthConfig) (ended func(good bool))
}

// pullMethod is the one call that is looked into, whatever CRI's version.
const pullMethod = "/runtime.v1.ImageService/PullImage"

// maxPullBytes bounds the requests that are looked into; containerd refuses larger
// ones.
const maxPullBytes = 16 << 20

// Server is a proxy that listens. Close it.
type Server struct {
	srv  *http.Server
	done chan struct{}
}

// Serve proxies from the socket listen, which only root may use, to containerd's.
// containerd need not be there: calls fail until it is.
func Serve(listen, containerd string, offers Offers, log *slog.Logger) (*Server, error) {
	if err := os.Remove(listen); err != nil && !errors.Is(err, os.ErrNotExist) { // one of a dead daemon
		return nil, fmt.Errorf("listen for image service calls: %w", err)
	}
	l, err := net.Listen("unix", listen)
	if err != nil {
		return nil, fmt.Errorf("listen for image service calls: %w", err)
	}
	if err := os.Chmod(listen, 0o600); err != nil {
		l.Close()
		return nil, fmt.Errorf("protect %s: %w", listen, err)
	}
	s := &Server{done: make(chan struct{}), srv: &http.Server{Handler: newHandler(containerd, offers, log), Protocols: clearHTTP2(),
		ErrorLog: slog.NewLogLogger(log.Handler(), slog.LevelWarn), ReadHeaderTimeout: 10 * time.Second}}
	go func() {
		defer close(s.done)
		if err := s.srv.Serve(l); !errors.Is(err, http.ErrServerClosed) {
			log.Error("image service ends", "socket", listen, "err", err)
		}
	}()
	return s, nil
}

// Close ends calls under way. Their callers try again.
func (s *Server) Close() error {
	err := s.srv.Close()
	<-s.done
	return err
}

// clearHTTP2 is what gRPC speaks on unix sockets.
func clearHTTP2() *http.Protocols {
	p := new(http.Protocols)
	p.SetUnencryptedHTTP2(true)
	return p
}

func newHandler(containerd string, offers Offers, log *slog.Logger) http.Handler {
	transport := &http.Transport{Protocols: clearHTTP2(), DisableCompression: true,
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, "unix", containerd)
		}}
	proxy := &httputil.ReverseProxy{
		Transport:     transport,
		FlushInterval: -1, // streams: each message at once
		Rewrite: func(r *httputil.ProxyRequest) {
			r.Out.URL.Scheme, r.Out.URL.Host = "http", "containerd"
			r.Out.Host = r.In.Host
			r.Out.Header["Te"] = r.In.Header["Te"] // hop by hop in HTTP, but gRPC insists
		},
		ErrorLog: slog.NewLogLogger(log.Handler(), slog.LevelWarn),
		ErrorHandler: func(w http.ResponseWriter, r *http.Request, err error) {
			if r.Context().Err() == nil {
				log.Warn("containerd does not answer a call of the kubelet", "method", r.URL.Path, "err", err)
			}
			w.Header().Set("Content-Type", "application/grpc")
			w.Header().Set("Grpc-Status", "14") // UNAVAILABLE: callers try again
			w.Header().Set("Grpc-Message", "thaw: containerd does not answer: "+strings.Map(printable, err.Error()))
		},
	}
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path != pullMethod {
			proxy.ServeHTTP(w, r)
			return
		}
		body, err := io.ReadAll(io.LimitReader(r.Body, maxPullBytes+1))
		if err != nil {
			return // the caller is gone
		}
		pull, err := parsePull(body)
		var auth authn.AuthConfig
		if err == nil {
			auth, err = pull.credentials()
		}
		if err != nil {
			log.Warn("pull of the kubelet is not understood, its credentials are not seen", "err", err)
		}
		rest := r.Body
		r.Body = struct {
			io.Reader
			io.Closer
		}{io.MultiReader(bytes.NewReader(body), rest), rest}
		if err != nil || auth == (authn.AuthConfig{}) {
			proxy.ServeHTTP(w, r)
			return
		}
		ended := offers.Offer(pull.repository, auth)
		good := false
		defer func() { ended(good) }() // the proxy panics when an answer breaks off
		proxy.ServeHTTP(w, r)
		good = grpcStatus(w.Header()) == "0"
	})
}

// grpcStatus is gRPC's, in a trailer of the answer.
func grpcStatus(h http.Header) string {
	if s := h.Get("Grpc-Status"); s != "" {
		return s
	}
	return h.Get(http.TrailerPrefix + "Grpc-Status")
}

func printable(r rune) rune {
	if r < ' ' || r > '~' || r == '%' {
		return '?'
	}
	return r
}

// message returns the first message of a gRPC body.
func message(body []byte) ([]byte, error) {
	if len(body) < 5 {
		return nil, errors.New("decode gRPC body: too short")
	}
	if body[0] != 0 {
		return nil, errors.New("decode gRPC body: it is compressed")
	}
	n := binary.BigEndian.Uint32(body[1:5])
	if uint64(n) > uint64(len(body)-5) {
		return nil, errors.New("decode gRPC body: shorter than it says")
	}
	return body[5 : 5+n], nil
}

// pull is what a PullImage request says of credentials.
type pull struct {
	repository string // "host/path"; empty: of an image that a digest alone names
	host       string
	auth       wireAuth
}

func parsePull(body []byte) (*pull, error) {
	b, err := message(body)
	if err != nil {
		return nil, err
	}
	image, auth, err := decodePull(b)
	if err != nil {
		return nil, err
	}
	ref, err := oci.ParseReference(image)
	if err != nil {
		return nil, err
	}
	if ref.IsLayout() {
		return nil, fmt.Errorf("image %q is in no registry", image)
	}
	return &pull{repository: ref.Name(), host: ref.Registry, auth: auth}, nil
}
