package credentials

import (
	"fmt"
	"net"
	"path"
	"slices"
	"strings"
)

// pattern is what the kubelet matches images by: a host whose labels may have
// wildcards, a port, and the begin of a path
// (https://kubernetes.io/docs/tasks/administer-cluster/kubelet-credential-provider/#configure-image-matching).
type pattern struct {
	labels []string
	port   string
	path   string
}

func parsePattern(s string) (pattern, error) {
	text := strings.TrimPrefix(strings.TrimPrefix(s, "https://"), "http://")
	host, rest, slash := strings.Cut(text, "/")
	p := pattern{path: rest}
	if slash {
		p.path = "/" + rest
	}
	p.labels, p.port = splitHost(host)
	for _, l := range p.labels {
		if _, err := path.Match(l, ""); err != nil || l == "" {
			return pattern{}, fmt.Errorf("%.100q is no pattern for images", s)
		}
	}
	return p, nil
}

func splitHost(hostport string) (labels []string, port string) {
	host, port, err := net.SplitHostPort(hostport)
	if err != nil {
		host, port = hostport, ""
	}
	return strings.Split(host, "."), port
}

// matches reports whether a repository ("host:port/path") is of a pattern.
func matches(s, repository string) bool {
	p, err := parsePattern(s)
	if err != nil {
		return false
	}
	host, rest, _ := strings.Cut(repository, "/")
	labels, port := splitHost(host)
	if port != p.port || len(labels) != len(p.labels) || !strings.HasPrefix("/"+rest, p.path) {
		return false
	}
	for i, l := range p.labels {
		if ok, _ := path.Match(l, labels[i]); !ok {
			return false
		}
	}
	return true
}

func matchesAny(patterns []string, repository string) bool {
	return slices.ContainsFunc(patterns, func(p string) bool { return matches(p, repository) })
}
