package install

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
	"os"
	"path/filepath"
	"strings"
	"time"
)

// serviceAccount is where a pod has what it needs to ask its cluster.
const serviceAccount = "/var/run/secrets/kubernetes.io/serviceaccount"

// Cluster is what a pod of a DaemonSet asks its Kubernetes: is this node still
// to have thaw? And it is told of what happens
// on the node. That is two GETs, a POST and a PATCH: no client is linked for them.
type Cluster struct {
	Node      string // the pod's node
	Label     string // of nodes that want thaw: key=value
	Namespace string
	DaemonSet string

	url    string
	token  string // file: it is renewed
	client *http.Client
	asked  bool // it has answered as it should, once
}

// ErrNoCluster is a process that is no pod.
var ErrNoCluster = errors.New("not in a cluster: KUBERNETES_SERVICE_HOST is not set")

// InCluster returns the cluster of this pod. Node, Namespace and DaemonSet are
// for the caller to set.
func InCluster() (*Cluster, error) {
	host := os.Getenv("KUBERNETES_SERVICE_HOST")
	if host == "" {
		return nil, ErrNoCluster
	}
	return newCluster("https://"+net.JoinHostPort(host, os.Getenv("KUBERNETES_SERVICE_PORT")), serviceAccount)
}

func newCluster(address, account string) (*Cluster, error) {
	ca, err := os.ReadFile(filepath.Join(account, "ca.crt"))
	if err != nil {
		return nil, fmt.Errorf("read the cluster's certificate: %w", err)
	}
	roots := x509.NewCertPool()
	if !roots.AppendCertsFromPEM(ca) {
		return nil, fmt.Errorf("read the cluster's certificate: none in %s", account)
	}
	return &Cluster{url: address, token: filepath.Join(account, "token"),
		client: &http.Client{Timeout: 10 * time.Second, Transport: &http.Transport{TLSClientConfig: &tls.Config{RootCAs: roots}}}}, nil
}

// object is what of any Kubernetes object is looked at.
type object struct {
	Metadata struct {
		DeletionTimestamp *string           `json:"deletionTimestamp"`
		Labels            map[string]string `json:"labels"`
	} `json:"metadata"`
}

// errAway is an object that is not there, or that we may not see any more.
var errAway = errors.New("it is away")

// Wanted reports whether the DaemonSet is there to stay and the node has the
// label. Once it has answered, not being allowed to ask means that the permission
// went with the rest. An error is no answer: nothing may follow from it.
func (c *Cluster) Wanted(ctx context.Context) (bool, error) {
	set, err := c.get(ctx, "/apis/apps/v1/namespaces/"+url.PathEscape(c.Namespace)+"/daemonsets/"+url.PathEscape(c.DaemonSet))
	if errors.Is(err, errAway) || err == nil && set.Metadata.DeletionTimestamp != nil {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	node, err := c.get(ctx, "/api/v1/nodes/"+url.PathEscape(c.Node))
	if errors.Is(err, errAway) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	c.asked = true
	key, value, _ := strings.Cut(c.Label, "=")
	return node.Metadata.Labels[key] == value, nil
}

// authorize gives a request the token of the pod's service account.
func (c *Cluster) authorize(req *http.Request) error {
	token, err := os.ReadFile(c.token)
	if err != nil {
		return fmt.Errorf("read the pod's token: %w", err)
	}
	req.Header.Set("Authorization", "Bearer "+strings.TrimSpace(string(token)))
	return nil
}

func (c *Cluster) get(ctx context.Context, path string) (*object, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, c.url+path, nil)
	if err != nil {
		return nil, err
	}
	if err := c.authorize(req); err != nil {
		return nil, err
	}
	resp, err := c.client.Do(req)
	if err != nil {
		return nil, fmt.Errorf("ask the cluster: %w", err)
	}
	defer resp.Body.Close()
	switch resp.StatusCode {
	case http.StatusOK:
	case http.StatusNotFound:
		return nil, errAway
	case http.StatusUnauthorized, http.StatusForbidden:
		if c.asked {
			return nil, errAway
		}
		fallthrough
	default:
		return nil, fmt.Errorf("ask the cluster for %s: %s", path, resp.Status)
	}
	var o object
	if err := json.NewDecoder(io.LimitReader(resp.Body, 16<<20)).Decode(&o); err != nil {
		return nil, fmt.Errorf("ask the cluster for %s: %w", path, err)
	}
	return &o, nil
}
