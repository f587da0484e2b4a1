package e2e

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"accessbroker.internal/api"
)

const kubeFile = `
server:
  external_url: %[1]s
  listen: "%[2]s"
  tls: {cert: cert.pem, key: key.pem}
  client_certs: off
  admin_socket: %[3]s/admin.sock
  seal_keys: [{file: seal.key}]
attest:
  trust_domain: acme.test
  oidc_workloads:
    cluster:
      issuer: %[4]s
      ca_file: %[5]s
      bearer_token_file: discovery.token
      trust_domain: k8s.acme.test
      one_time: false
      rules:
        - claims: {kubernetes.io: {namespace: payments, serviceaccount: {name: api}}}
          spiffe_id: spiffe://k8s.acme.test/ns/${/kubernetes.io/namespace}/sa/${/kubernetes.io/serviceaccount/name}
store: sqlite:broker.db
policies: policies
issuers:
  vault: {vault: {address: "%[6]s", ca_file: "%[7]s", auth: {token_file: vault.token}, token_role: broker-leases}}
entitlements:
  orders-db-ro: {issuer: vault, vault: {path: database/creds/orders-ro, policies: [orders-db-ro]}, max_ttl: 30m}
`

const kubePolicy = `
@id("pods")
permit (principal in Path::"spiffe://k8s.acme.test/ns/payments", action == Action::"request", resource == Entitlement::"orders-db-ro")
when { principal.attested == "oidc" };
`

// A kubeWorld is a broker without SPIRE, whose callers are pods of a cluster, and which
// issues users of a PostgreSQL.
type kubeWorld struct {
	*lab
	kube *kube
}

func startKubeWorld(t testing.TB) *kubeWorld {
	t.Helper()
	w := &kubeWorld{kube: startKube(t), lab: &lab{vault: startVault(t), postgres: startPostgres(t)}}
	w.postgres.must(t, "CREATE TABLE orders (id int PRIMARY KEY); INSERT INTO orders VALUES (4711)")
	w.vault.database(t, w.postgres, "orders-ro", "SELECT ON orders")
	w.vault.policyText(t, "orders-db-ro", docPolicy(t, "orders-db-ro.hcl"))
	w.vault.policyText(t, "broker", docPolicy(t, "broker.hcl"))
	w.vault.tokenRole(t, "broker-leases", "orders-db-ro")

	// The cluster's discovery is for its service accounts: the broker is one of them.
	w.kube.serviceAccount(t, "access", "broker")
	w.kube.serviceAccount(t, "payments", "api")
	plain := newPlainWorld(t)
	w.world = plain.world
	w.write(t, "discovery.token", w.kube.token(t, "access", "broker", ""))
	w.write(t, "vault.token", w.brokerToken(t))
	w.write(t, "policies/all.cedar", kubePolicy)
	w.write(t, "broker.yaml", fmt.Sprintf(kubeFile, w.url, w.listen, w.dir, w.kube.issuer(), w.kube.caFile(), w.vault.address(), w.vault.caFile()))
	w.start(t)
	return w
}

// pod runs the command line with a token in a file, as in a pod.
func (w *kubeWorld) pod(t testing.TB, token string, args ...string) (stdout, stderr string, code int) {
	t.Helper()
	file := filepath.Join(t.TempDir(), "token")
	if err := os.WriteFile(file, []byte(token), 0o600); err != nil {
		t.Fatal(err)
	}
	return w.with("BROKER_TOKEN_FILE="+file, args...)
}

// with runs the command line with a variable that locates the token.
func (w *kubeWorld) with(variable string, args ...string) (stdout, stderr string, code int) {
	cmd := exec.Command(w.bin, args...)
	env := slices.DeleteFunc(os.Environ(), func(kv string) bool { return strings.HasPrefix(kv, "PG") || strings.HasPrefix(kv, "GITHUB_") })
	cmd.Env = append(env, "BROKER_URL="+w.url, "BROKER_CA="+filepath.Join(w.dir, "cert.pem"), variable,
		"PGHOST=127.0.0.1", fmt.Sprintf("PGPORT=%d", w.postgres.Port), "PGDATABASE=postgres", "PGSSLMODE=disable", "PGCONNECT_TIMEOUT=10")
	var out, errs strings.Builder
	cmd.Stdout, cmd.Stderr = &out, &errs
	if err := cmd.Run(); cmd.ProcessState == nil {
		return "", err.Error(), -1
	}
	return out.String(), errs.String(), cmd.ProcessState.ExitCode()
}

// A pod's service account token becomes a database password that ends with the command.
// The API server, Vault and PostgreSQL are real.
func TestKubernetesTokenBecomesDatabasePassword(t *testing.T) {
	t.Parallel()
	w := startKubeWorld(t)
	token := w.kube.token(t, "payments", "api", w.url)
	t.Run("whoami", func(t *testing.T) {
		out, errs, code := w.pod(t, token, "whoami")
		if code != 0 || !strings.Contains(out, "spiffe://k8s.acme.test/ns/payments/sa/api") {
			t.Fatalf("got %d: %s%s", code, out, errs)
		}
	})
	t.Run("exec", func(t *testing.T) { w.readOrders(t, "BROKER_TOKEN_FILE="+w.file(t, token), "exec", "orders-db-ro") })
	t.Run("ci", func(t *testing.T) { w.readOrders(t, "BROKER_ID_TOKEN="+token, "ci", "orders-db-ro") })
	t.Run("others", func(t *testing.T) { testOtherPods(t, w) })
	t.Run("deleted", func(t *testing.T) { testDeletedServiceAccount(t, w) })
	t.Run("rotated", func(t *testing.T) { testRotatedCluster(t, w, token) })
}

func (w *kubeWorld) file(t testing.TB, token string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "token")
	if err := os.WriteFile(path, []byte(token), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// readOrders reads the table with psql, which finds the password by itself, and checks
// that the password does not work afterwards.
func (w *kubeWorld) readOrders(t *testing.T, identity string, command ...string) {
	t.Helper()
	copied := filepath.Join(t.TempDir(), "copy")
	psql := filepath.Join(w.postgres.Bin(), "psql")
	args := slices.Concat(command, []string{"--", "sh", "-euc", `cp "$BROKER_CREDENTIAL_FILE" "$0"; exec "$@"`, copied, psql, "--no-psqlrc", "-qtAc", "SELECT id FROM orders"})
	out, errs, code := w.with(identity, args...)
	if code != 0 || strings.TrimSpace(out) != "4711" {
		t.Fatalf("got %d: %s%s", code, out, errs)
	}
	text, err := os.ReadFile(copied)
	if err != nil {
		t.Fatal(err)
	}
	c := &api.Credential{}
	if err := json.Unmarshal(text, &c.Secret); err != nil || c.Secret["password"] == "" {
		t.Fatalf("the credential has %d fields, %v", len(c.Secret), err)
	}
	if strings.Contains(out+errs, c.Secret["password"]) {
		t.Error("the output has the password")
	}
	eventually(t, "the end of the password", time.Minute, func() error { return w.rejected(c) })
	records, errs, code := w.with("X=", "audit", "show", "sqlite:"+filepath.Join(w.dir, "broker.db"))
	if code != 0 || !strings.Contains(records, "spiffe://k8s.acme.test/ns/payments/sa/api") {
		t.Errorf("the log does not name the pod: %d: %s%s", code, records, errs)
	}
}

// Tokens that are not of this service account for this broker get nothing.
func testOtherPods(t *testing.T, w *kubeWorld) {
	w.kube.serviceAccount(t, "shop", "api")
	w.kube.serviceAccount(t, "payments", "api-2")
	for name, token := range map[string]string{
		"another namespace":       w.kube.token(t, "shop", "api", w.url),
		"another service account": w.kube.token(t, "payments", "api-2", w.url),
		"another audience":        w.kube.token(t, "payments", "api", "https://vault.acme.test"),
		"a slash at the end":      w.kube.token(t, "payments", "api", w.url+"/"),
		"the default audience":    w.kube.token(t, "payments", "api", ""),
		"two audiences":           w.kube.must(t, "create", "token", "api", "--namespace", "payments", "--audience", w.url, "--audience", "https://vault.acme.test"),
	} {
		out, errs, code := w.pod(t, token, "request", "orders-db-ro")
		if code != 3 || strings.Contains(out+errs, "eyJ") {
			t.Errorf("%s: got exit code %d: %s%s", name, code, out, errs)
		}
	}
	w.waitNoUsers(t)
}

// The broker verifies a token by its signature, so a service account that was deleted is
// known until its last token has expired (docs/without-spire.md). A block ends it at once.
func testDeletedServiceAccount(t *testing.T, w *kubeWorld) {
	w.kube.serviceAccount(t, "payments", "temporary")
	w.kube.must(t, "delete", "serviceaccount", "temporary", "--namespace", "payments")
	token := w.kube.token(t, "payments", "api", w.url)
	w.kube.must(t, "delete", "serviceaccount", "api", "--namespace", "payments")
	if _, err := w.kube.call("create", "token", "api", "--namespace", "payments"); err == nil {
		t.Error("the cluster issues tokens of a deleted service account")
	}
	if out, errs, code := w.pod(t, token, "whoami"); code != 0 {
		t.Errorf("got %d: %s%s", code, out, errs)
	}
	kill := []string{"--holder", "spiffe://k8s.acme.test/ns/payments/sa/api", "--why", "its service account is gone", "--admin-socket", w.dir + "/admin.sock"}
	if _, errs, code := w.with("X=", append([]string{"kill", "--yes"}, kill...)...); code != 0 {
		t.Fatalf("kill: %s", errs)
	}
	if out, errs, code := w.pod(t, token, "request", "orders-db-ro"); code != 3 {
		t.Errorf("a blocked pod: got %d: %s%s", code, out, errs)
	}
	if _, errs, code := w.with("X=", "blocks", "lift", kill[0], kill[1], "--why", "it is back", "--admin-socket", w.dir+"/admin.sock"); code != 0 {
		t.Fatalf("blocks lift: %s", errs)
	}
	w.kube.must(t, "create", "serviceaccount", "api", "--namespace", "payments")
}

// The cluster has another key: its new tokens work, and then the old ones do not.
func testRotatedCluster(t *testing.T, w *kubeWorld, old string) {
	if out, errs, code := w.pod(t, old, "whoami"); code != 0 {
		t.Fatalf("before the rotation: got %d: %s%s", code, out, errs)
	}
	w.kube.rotate(t)
	// The broker's own token was signed with the old key, too.
	w.write(t, "discovery.token", w.kube.token(t, "access", "broker", ""))
	renewed := w.kube.token(t, "payments", "api", w.url)
	eventually(t, "the new key", 2*time.Minute, func() error {
		out, errs, code := w.pod(t, renewed, "whoami")
		if code != 0 {
			return errors.New(out + errs)
		}
		return nil
	})
	out, errs, code := w.pod(t, old, "whoami")
	if code != 3 || !regexp.MustCompile(`(?i)key`).MatchString(errs) {
		t.Errorf("a token of the old key: got %d: %s%s", code, out, errs)
	}
}
