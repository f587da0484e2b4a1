// Package servers builds and finds the real servers that the end-to-end tests
// run against: SPIRE, Vault, MinIO, Kubernetes' API server and an OpenID provider, which
// are built from their published Go modules, and PostgreSQL, Chromium, sshd and the AWS command
// line, which are packages of the distribution.
//
// Building takes up to 30 minutes on a cold machine. It is a step of its own
// (make servers), with its own time limit; the tests only look the results up.
// The working directory of both is the folder of the e2e module.
package servers

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
)

// A server is built from the module in tools/<name>, whose go.mod and go.sum pin
// its version.
type server struct {
	name     string
	packages []string // to build; "." is the tool module's own main package
	commands []string // that the build leaves behind
	main     bool     // the tool module has a main.go of its own
	clock    bool     // its clock can be set by ClockEnv
	cgo      bool
	strip    bool // without symbols, because the command is large
}

var all = []server{
	{name: "op", packages: []string{"."}, commands: []string{"op"}, main: true, cgo: true},
	{name: "vault", packages: []string{"."}, commands: []string{"vault"}, main: true, clock: true},
	{name: "minio", packages: []string{"github.com/minio/minio", "github.com/minio/mc"}, commands: []string{"minio", "mc"}, clock: true},
	// SPIRE's SQLite is written in C. Without a C compiler, the build succeeds and
	// the server does not start.
	{name: "spire", packages: []string{"github.com/spiffe/spire/cmd/spire-server", "github.com/spiffe/spire/cmd/spire-agent"},
		commands: []string{"spire-server", "spire-agent"}, cgo: true},
	// etcd's command is the module's root, which the go command names "server".
	{name: "kube", packages: []string{"k8s.io/kubernetes/cmd/kube-apiserver", "go.etcd.io/etcd/server/v3"}, commands: []string{"kube-apiserver", "server"}, strip: true},
}

// Dir returns the folder of a server's commands. If the server has not been built,
// the error states how to build it.
func Dir(name string) (string, error) {
	i := slices.IndexFunc(all, func(s server) bool { return s.name == name })
	if i < 0 {
		return "", fmt.Errorf("no server is named %q", name)
	}
	dir, err := all[i].dir()
	if err != nil {
		return "", err
	}
	for _, command := range all[i].commands {
		if _, err := os.Stat(filepath.Join(dir, command)); err != nil {
			return "", fmt.Errorf("%s is not built: run make servers first (%w)", command, err)
		}
	}
	return dir, nil
}

// dir returns the server's folder in the user's cache. Its name changes with
// everything that the build depends on, except the version of Go.
func (s server) dir() (string, error) {
	cache, err := os.UserCacheDir()
	if err != nil {
		return "", err
	}
	sources := []string{"go.mod", "go.sum"}
	if s.main {
		sources = append(sources, "main.go")
	}
	h := sha256.New()
	for _, name := range sources {
		text, err := os.ReadFile(filepath.Join(s.tool(), name))
		if err != nil {
			return "", err
		}
		if s.name != "spire" {
			fmt.Fprintf(h, "%s %d\n", name, len(text))
		}
		h.Write(text)
	}
	key := hex.EncodeToString(h.Sum(nil)[:6])
	if s.clock {
		sum := sha256.Sum256([]byte(nowAfter + clockSource))
		key += "-" + hex.EncodeToString(sum[:3])
	}
	return filepath.Join(cache, "access-broker", "e2e", s.name+"-"+key), nil
}

func (s server) tool() string { return filepath.Join("tools", s.name) }

// A dependency is a command that comes with a package of the distribution.
type dependency struct {
	command string
	places  []string // where to look besides PATH; the last match wins
	debian  string   // the package
}

var dependencies = []dependency{
	{"initdb", []string{"/usr/lib/postgresql/*/bin/initdb", "/usr/lib/postgresql/15/bin/initdb"}, "postgresql-15"},
	{"chromium", nil, "chromium"},
	{"aws", nil, "awscli"},
	{"sshd", []string{"/usr/sbin/sshd"}, "openssh-server"},
	{"ssh", nil, "openssh-client"},
	{"curl", nil, "curl"},
	{"nginx", []string{"/usr/sbin/nginx"}, "nginx"},
	{"haproxy", []string{"/usr/sbin/haproxy"}, "haproxy"},
	{"pgbouncer", []string{"/usr/sbin/pgbouncer"}, "pgbouncer"},
	{"prometheus", nil, "prometheus"},
	{"promtool", nil, "prometheus"},
	{"slapd", []string{"/usr/sbin/slapd"}, "slapd"},
	{"ldapmodify", nil, "ldap-utils"},
	{"kubectl", nil, "kubernetes-client"},
	{"ip", []string{"/usr/sbin/ip"}, "iproute2"},
	{"node", nil, "nodejs"},
	{"npm", nil, "npm"},
	// Debian's Python finds Debian's modules; another one on the PATH does not.
	{"python3", []string{"/usr/bin/python3"}, "python3"},
	{"python3-authlib", []string{"/usr/lib/python3/dist-packages/authlib/__init__.py"}, "python3-authlib"},
	{"python3-requests", []string{"/usr/lib/python3/dist-packages/requests/__init__.py"}, "python3-requests"},
}

// Command returns the path of a command of the distribution. It returns an error
// that names the package if the command is missing.
func Command(name string) (string, error) {
	i := slices.IndexFunc(dependencies, func(d dependency) bool { return d.command == name })
	if i < 0 {
		return "", fmt.Errorf("no dependency is named %q", name)
	}
	if path := dependencies[i].find(); path != "" {
		return path, nil
	}
	return "", fmt.Errorf("%s is not installed: run make servers as root, or install it (apt-get install %s)", name, dependencies[i].debian)
}

func (d dependency) find() string {
	path, err := exec.LookPath(d.command)
	if err != nil {
		path = ""
	}
	for _, place := range d.places {
		if found, err := filepath.Glob(place); err == nil && len(found) > 0 {
			path = found[len(found)-1]
		}
	}
	return path
}
