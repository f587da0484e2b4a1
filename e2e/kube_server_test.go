package e2e

import (
	"bytes"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// A kube is the API server of a Kubernetes cluster without nodes, and its etcd. It issues
// service account tokens and serves the keys that sign them.
type kube struct {
	owner  testing.TB // the servers end with it
	dir    string
	etcd   string
	port   int
	server *process
}

// kubeAdmin is the token of the cluster's administrator.
const kubeAdmin = "administrator-only-in-tests"

func startKube(t testing.TB) *kube {
	t.Helper()
	k := &kube{owner: t, dir: t.TempDir(), port: freePort(t), etcd: fmt.Sprintf("http://127.0.0.1:%d", freePort(t))}
	peers := fmt.Sprintf("http://127.0.0.1:%d", freePort(t))
	_, err := start(t, "etcd", filepath.Join(built(t, "kube"), "server"), "--data-dir", k.path("etcd"), "--unsafe-no-fsync", "--log-level", "error",
		"--listen-client-urls", k.etcd, "--advertise-client-urls", k.etcd,
		"--listen-peer-urls", peers, "--initial-advertise-peer-urls", peers, "--initial-cluster", "default="+peers)
	if err != nil {
		t.Fatal(err)
	}
	loopbackTLS(t, k.caFile(), k.path("cert.pem"), k.path("key.pem"))
	k.write("tokens.csv", kubeAdmin+",administrator,1,system:masters\n")
	k.newSigner(t)
	k.start(t)
	return k
}

func (k *kube) path(name string) string { return filepath.Join(k.dir, name) }
func (k *kube) caFile() string          { return k.path("ca.pem") }
func (k *kube) issuer() string          { return fmt.Sprintf("https://127.0.0.1:%d", k.port) }

func (k *kube) write(name, text string) {
	k.owner.Helper()
	if err := os.WriteFile(k.path(name), []byte(text), 0o600); err != nil {
		k.owner.Fatal(err)
	}
}

// newSigner makes a new key for service account tokens. The API server uses it, and it
// alone, from its next start on.
func (k *kube) newSigner(t testing.TB) {
	t.Helper()
	key, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	public, err := x509.MarshalPKIXPublicKey(key.Public())
	if err != nil {
		t.Fatal(err)
	}
	k.write("sa.key", string(pem.EncodeToMemory(&pem.Block{Type: "RSA PRIVATE KEY", Bytes: x509.MarshalPKCS1PrivateKey(key)})))
	k.write("sa.pub", string(pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: public})))
}

// start starts the API server, or starts it again on the same port.
func (k *kube) start(t testing.TB) {
	t.Helper()
	var err error
	k.server, err = start(k.owner, "kube-apiserver", filepath.Join(built(t, "kube"), "kube-apiserver"),
		"--etcd-servers", k.etcd, "--bind-address", "127.0.0.1", "--secure-port", fmt.Sprint(k.port),
		"--tls-cert-file", k.path("cert.pem"), "--tls-private-key-file", k.path("key.pem"), "--cert-dir", k.path("certs"),
		"--token-auth-file", k.path("tokens.csv"), "--authorization-mode", "RBAC",
		"--service-account-issuer", k.issuer(), "--service-account-jwks-uri", k.issuer()+"/openid/v1/jwks",
		"--service-account-key-file", k.path("sa.pub"), "--service-account-signing-key-file", k.path("sa.key"),
		"--v", "0", "--service-cluster-ip-range", "10.0.0.0/24", "--disable-admission-plugins", "ServiceAccount")
	if err != nil {
		t.Fatal(err)
	}
	eventually(t, "the start of the API server", 3*time.Minute, func() error {
		if k.server.ended() {
			t.Fatalf("the API server did not start:\n%s", k.server.out)
		}
		_, err := k.call("get", "--raw", "/readyz")
		return err
	})
}

// rotate replaces the key with which the API server signs tokens. An operator does so when
// the key was stolen.
func (k *kube) rotate(t testing.TB) {
	t.Helper()
	k.server.stop()
	k.newSigner(t)
	k.start(t)
}

// call runs kubectl as the cluster's administrator.
func (k *kube) call(args ...string) (string, error) {
	kubectl, err := exec.LookPath("kubectl")
	if err != nil {
		return "", err
	}
	cmd := exec.Command(kubectl, append([]string{"--server", k.issuer(), "--certificate-authority", k.caFile(), "--token", kubeAdmin, "--cache-dir", k.path("cache")}, args...)...)
	cmd.Env = []string{"PATH=" + os.Getenv("PATH"), "HOME=" + k.dir, "KUBECONFIG=" + k.path("none")}
	var out, errs bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errs
	if err := cmd.Run(); err != nil {
		return "", fmt.Errorf("kubectl %s: %w: %s", strings.Join(args, " "), err, errs.String())
	}
	return strings.TrimSpace(out.String()), nil
}

func (k *kube) must(t testing.TB, args ...string) string {
	t.Helper()
	out, err := k.call(args...)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// serviceAccount creates a service account, and its namespace if that is new.
func (k *kube) serviceAccount(t testing.TB, namespace, name string) {
	t.Helper()
	if _, err := k.call("get", "namespace", namespace); err != nil {
		k.must(t, "create", "namespace", namespace)
	}
	k.must(t, "create", "serviceaccount", name, "--namespace", namespace)
}

// token returns a token of a service account. The default audience is the API server's.
func (k *kube) token(t testing.TB, namespace, name, audience string) string {
	t.Helper()
	args := []string{"create", "token", name, "--namespace", namespace}
	if audience != "" {
		args = append(args, "--audience", audience)
	}
	token := k.must(t, args...)
	if strings.Count(token, ".") != 2 {
		t.Fatal(errors.New("kubectl create token printed no token"))
	}
	return token
}
