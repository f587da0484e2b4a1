package config

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io"
	"maps"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/goccy/go-yaml/ast"

	"accessbroker.internal/broker"
)

// Replicas configures brokers that share a database.
type Replicas struct {
	RevisionGrace time.Duration // how long a replica may decide by rules that another one replaced
}

type replicasFile struct {
	RevisionGrace *delay `yaml:"revision_grace"`
}

const (
	defaultRevisionGrace = time.Minute
	longestRevisionGrace = time.Hour
)

func (c *checker) replicas() {
	f := c.d.file.Replicas
	c.cfg.Replicas = Replicas{RevisionGrace: defaultRevisionGrace}
	if f.RevisionGrace != nil {
		c.cfg.Replicas.RevisionGrace = time.Duration(*f.RevisionGrace)
	}
	if c.cfg.Replicas.RevisionGrace > longestRevisionGrace {
		c.report("replicas/revision_grace", "must be at most %s", broker.FormatDuration(longestRevisionGrace))
	}
}

// ownKeys are the keys that each replica may have of its own: its addresses, files and
// resources. The revision covers the policies.
var ownKeys = []string{
	"attest/bundles", "attest/workload_api", "policies", "server/admin_socket", "server/checkpoint_file", "server/client_certs", "server/drain",
	"server/hosts", "server/limits", "server/listen", "server/listeners", "server/log", "server/metrics", "server/seal_keys", "server/tls",
	"server/trusted_proxies", "store",
}

// Digest returns a digest of what the file must state alike on all replicas. It is empty for
// a Config that is not from a file.
func (c *Config) Digest() string {
	if c.document == nil {
		return ""
	}
	h := sha256.New()
	writeNode(h, c.document.root, "")
	return hex.EncodeToString(h.Sum(nil))
}

// writeNode writes a form of a node that does not depend on how it is written, or in which
// order its keys are.
func writeNode(w io.Writer, node ast.Node, key string) {
	switch n := node.(type) {
	case *ast.MappingNode, *ast.MappingValueNode:
		values := map[string]ast.Node{}
		for _, v := range pairs(n) {
			values[v.Key.GetToken().Value] = v.Value
		}
		_, _ = fmt.Fprintf(w, "{")
		for _, name := range slices.Sorted(maps.Keys(values)) {
			if path := strings.TrimPrefix(key+"/"+name, "/"); !slices.Contains(ownKeys, path) {
				_, _ = fmt.Fprintf(w, "%q:", name)
				writeNode(w, values[name], path)
			}
		}
		_, _ = fmt.Fprintf(w, "}")
	case *ast.SequenceNode:
		_, _ = fmt.Fprintf(w, "[")
		for i, v := range n.Values {
			writeNode(w, v, key+"/"+strconv.Itoa(i))
		}
		_, _ = fmt.Fprintf(w, "]")
	case *ast.StringNode:
		_, _ = fmt.Fprintf(w, "%q,", n.Value)
	case *ast.LiteralNode:
		_, _ = fmt.Fprintf(w, "%q,", n.Value.Value)
	case nil:
		_, _ = fmt.Fprintf(w, "null,")
	default:
		_, _ = fmt.Fprintf(w, "%q,", n.GetToken().Value)
	}
}

// pairs returns the pairs of a mapping.
func pairs(node ast.Node) []*ast.MappingValueNode {
	switch n := node.(type) {
	case *ast.MappingNode:
		return n.Values
	case *ast.MappingValueNode:
		return []*ast.MappingValueNode{n}
	}
	return nil
}
