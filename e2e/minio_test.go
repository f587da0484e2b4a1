package e2e

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha1"
	"crypto/tls"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/go-jose/go-jose/v4"
	"github.com/go-jose/go-jose/v4/jwt"
)

const (
	minioAdmin    = "admin" // the root user
	minioPassword = "only-in-tests"
)

// A minio is a real MinIO: S3 and an STS with AssumeRole, for its own users, and
// AssumeRoleWithWebIdentity, for tokens of an OpenID provider.
type minio struct {
	owner  testing.TB // the server ends with it
	bin    string
	dir    string
	port   int
	openID minioOpenID
	clock  clock
	server *process
}

// A minioOpenID is the provider whose tokens a minio accepts. It has to be up
// when the minio starts.
type minioOpenID struct {
	configURL string // …/.well-known/openid-configuration; empty: no provider
	caFile    string // of the provider's certificate
	clientID  string // the audience of the tokens
	policy    string // the policy of the role; empty: readwrite
}

// An awsCredential is a credential as STS and the AWS CLI write it.
type awsCredential struct {
	AccessKeyID     string `json:"AccessKeyId"`
	SecretAccessKey string
	SessionToken    string
	Expiration      time.Time
}

// startMinIO starts an empty MinIO with TLS on loopback.
func startMinIO(t testing.TB, provider minioOpenID) *minio {
	t.Helper()
	m := &minio{owner: t, bin: built(t, "minio"), dir: t.TempDir(), port: freePort(t), openID: provider}
	for _, d := range []string{"data", "home", "certs/CAs", "mc/certs/CAs"} {
		if err := os.MkdirAll(m.path(d), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	loopbackTLS(t, m.caFile(), m.path("certs/public.crt"), m.path("certs/private.key"), upstreamName)
	trusted := map[string]string{m.caFile(): m.path("mc/certs/CAs/minio.pem")}
	if provider.caFile != "" {
		trusted[provider.caFile] = m.path("certs/CAs/provider.pem")
	}
	for from, to := range trusted {
		text, err := os.ReadFile(from)
		if err == nil {
			err = os.WriteFile(to, text, 0o600)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	m.start(t)
	return m
}

func (m *minio) path(name string) string { return filepath.Join(m.dir, filepath.FromSlash(name)) }
func (m *minio) address() string         { return fmt.Sprintf("https://127.0.0.1:%d", m.port) }
func (m *minio) caFile() string          { return m.path("ca.pem") }

// roleARN returns the ARN of the role that the provider's tokens may assume.
func (m *minio) roleARN() string {
	id := sha1.Sum([]byte(m.openID.clientID)) // as MinIO names it
	return "arn:minio:iam:::role/" + base64.RawURLEncoding.EncodeToString(id[:])
}

// start starts the server, or starts it again with the same data and port.
func (m *minio) start(t testing.TB) {
	t.Helper()
	args := []string{"-u", "MINIO_ENDPOINTS", "-u", "MINIO_VOLUMES", "HOME=" + m.path("home"), "MINIO_BROWSER=off", "MINIO_UPDATE=off",
		"MINIO_ROOT_USER=" + minioAdmin, "MINIO_ROOT_PASSWORD=" + minioPassword}
	if p := m.openID; p.configURL != "" {
		policy := p.policy
		if policy == "" {
			policy = "readwrite"
		}
		args = append(args, "MINIO_IDENTITY_OPENID_CONFIG_URL="+p.configURL, "MINIO_IDENTITY_OPENID_CLIENT_ID="+p.clientID,
			"MINIO_IDENTITY_OPENID_ROLE_POLICY="+policy)
	}
	args = append(args, filepath.Join(m.bin, "minio"), "server", "--certs-dir", m.path("certs"),
		"--address", fmt.Sprintf("127.0.0.1:%d", m.port), m.path("data"))
	var err error
	if m.server, err = startIn(m.clock.environment(), m.owner, "minio", "env", args...); err != nil {
		t.Fatal(err)
	}
	// The health check succeeds long before MinIO knows its users and its provider.
	eventually(t, "the start of MinIO", time.Minute, func() error {
		if m.server.ended() {
			t.Fatalf("MinIO did not start:\n%s", m.server.out)
		}
		if _, err := m.mc("ls", "it"); err != nil {
			return fmt.Errorf("%w\n%s", err, m.server.out)
		}
		return nil
	})
}

// stop shuts the server down; kill ends it as a crash would.
func (m *minio) stop() { m.server.stop() }
func (m *minio) kill() { m.server.kill() }

// mc runs MinIO's client as the root user. The server's alias is "it", as in
// "mb", "it/reports".
func (m *minio) mc(args ...string) (string, error) {
	cmd := exec.Command(filepath.Join(m.bin, "mc"), append([]string{"--config-dir", m.path("mc"), "--quiet"}, args...)...)
	cmd.Env = append(os.Environ(), "HOME="+m.path("home"), fmt.Sprintf("MC_HOST_it=https://%s:%s@127.0.0.1:%d", minioAdmin, minioPassword, m.port))
	out, err := cmd.CombinedOutput()
	if err != nil {
		return "", fmt.Errorf("mc %s: %w: %s", strings.Join(args, " "), err, out)
	}
	return string(out), nil
}

func (m *minio) must(t testing.TB, args ...string) string {
	t.Helper()
	out, err := m.mc(args...)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// policy creates a policy for users or for the provider's role.
func (m *minio) policy(t testing.TB, name, document string) {
	t.Helper()
	path := m.path(name + ".json")
	if err := os.WriteFile(path, []byte(document), 0o600); err != nil {
		t.Fatal(err)
	}
	m.must(t, "admin", "policy", "create", "it", name, path)
}

// user creates a user with a policy and returns its keys. AssumeRole with these
// keys returns sessions that the policy limits.
func (m *minio) user(t testing.TB, name, policy string) awsCredential {
	t.Helper()
	c := awsCredential{AccessKeyID: name, SecretAccessKey: name + "-" + rand.Text()}
	m.must(t, "admin", "user", "add", "it", c.AccessKeyID, c.SecretAccessKey)
	m.must(t, "admin", "policy", "attach", "it", policy, "--user", name)
	return c
}

// aws runs the AWS CLI against MinIO and decodes its output into the value,
// unless that is nil.
func (m *minio) aws(t testing.TB, c awsCredential, into any, args ...string) error {
	t.Helper()
	cmd := exec.Command(installed(t, "aws"), append([]string{"--endpoint-url", m.address(), "--output", "json"}, args...)...)
	for _, v := range os.Environ() {
		if !strings.HasPrefix(v, "AWS_") {
			cmd.Env = append(cmd.Env, v)
		}
	}
	cmd.Env = append(cmd.Env, "AWS_DEFAULT_REGION=us-east-1", "AWS_CA_BUNDLE="+m.caFile(), "AWS_MAX_ATTEMPTS=1", "AWS_PAGER=",
		"AWS_EC2_METADATA_DISABLED=true", "AWS_CONFIG_FILE="+m.path("home/none"), "AWS_SHARED_CREDENTIALS_FILE="+m.path("home/none"))
	if c.AccessKeyID != "" {
		cmd.Env = append(cmd.Env, "AWS_ACCESS_KEY_ID="+c.AccessKeyID, "AWS_SECRET_ACCESS_KEY="+c.SecretAccessKey)
	}
	if c.SessionToken != "" {
		cmd.Env = append(cmd.Env, "AWS_SESSION_TOKEN="+c.SessionToken)
	}
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		return fmt.Errorf("aws %s: %w: %s", strings.Join(args, " "), err, bytes.TrimSpace(stderr.Bytes()))
	}
	if into == nil {
		return nil
	}
	if err := json.Unmarshal(out, into); err != nil {
		return fmt.Errorf("aws %s: %w\n%s", strings.Join(args, " "), err, out)
	}
	return nil
}

// put writes an object; get reads one.
func (m *minio) put(t testing.TB, c awsCredential, bucket, key, text string) error {
	t.Helper()
	path := filepath.Join(t.TempDir(), "object")
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return m.aws(t, c, nil, "s3api", "put-object", "--bucket", bucket, "--key", key, "--body", path)
}

func (m *minio) get(t testing.TB, c awsCredential, bucket, key string) (string, error) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "object")
	if err := m.aws(t, c, nil, "s3api", "get-object", "--bucket", bucket, "--key", key, path); err != nil {
		return "", err
	}
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return string(text), nil
}

// accessDenied returns nil if err is the refusal of S3 for access that the policy
// forbids.
func accessDenied(err error) error {
	if err == nil {
		return errors.New("it was allowed")
	}
	if !strings.Contains(err.Error(), "(AccessDenied)") {
		return fmt.Errorf("want AccessDenied: %w", err)
	}
	return nil
}

const readReports = `{"Version": "2012-10-17", "Statement": [{"Effect": "Allow", "Action": ["s3:GetObject"], "Resource": ["arn:aws:s3:::reports/2026/*"]}]}`

func TestMinIO(t *testing.T) {
	t.Parallel() // it mostly waits
	provider, token := startTestProvider(t)
	m := startMinIO(t, provider)
	m.must(t, "mb", "it/reports")
	m.policy(t, "reports", `{"Version": "2012-10-17", "Statement": [{"Effect": "Allow", "Action": ["s3:*"], "Resource": ["arn:aws:s3:::reports/*"]}]}`)
	user := m.user(t, "publisher", "reports")
	for key, text := range map[string]string{"2026/q1": "first quarter", "2025/q4": "last year"} {
		if err := m.put(t, user, "reports", key, text); err != nil {
			t.Fatal(err)
		}
	}
	t.Run("AssumeRole", func(t *testing.T) {
		narrow(t, m, user, "sts", "assume-role", "--role-arn", "arn:aws:iam::123456789012:role/reports")
	})
	t.Run("WebIdentity", func(t *testing.T) {
		narrow(t, m, awsCredential{}, "sts", "assume-role-with-web-identity", "--role-arn", m.roleARN(), "--web-identity-token", token(provider.clientID))
	})
	t.Run("Refusals", func(t *testing.T) {
		for name, args := range map[string][]string{
			"another audience": {"--role-arn", m.roleARN(), "--web-identity-token", token("somebody else")},
			"another role":     {"--role-arn", m.roleARN() + "x", "--web-identity-token", token(provider.clientID)},
		} {
			args = append([]string{"sts", "assume-role-with-web-identity", "--role-session-name", "lease"}, args...)
			if err := m.aws(t, awsCredential{}, nil, args...); err == nil || !strings.Contains(err.Error(), "InvalidParameterValue") {
				t.Errorf("%s: %v", name, err)
			}
		}
		if err := m.aws(t, awsCredential{AccessKeyID: "publisher", SecretAccessKey: "guessed"}, nil, "sts", "assume-role",
			"--role-arn", "arn:aws:iam::123456789012:role/reports", "--role-session-name", "lease"); err == nil {
			t.Error("a role was assumed by a guessed key")
		}
	})
	t.Run("Restart", func(t *testing.T) {
		m.stop()
		m.start(t)
		m.kill()
		m.start(t)
		if text, err := m.get(t, user, "reports", "2026/q1"); err != nil || text != "first quarter" {
			t.Errorf("after the restarts: %q, %v", text, err)
		}
	})
}

// narrow assumes a role with a session policy and checks that the session may do
// what the policy allows and nothing else.
func narrow(t *testing.T, m *minio, c awsCredential, args ...string) {
	var made struct{ Credentials awsCredential }
	args = append(args, "--role-session-name", "lease", "--duration-seconds", "900", "--policy", readReports)
	if err := m.aws(t, c, &made, args...); err != nil {
		t.Fatal(err)
	}
	session := made.Credentials
	if left := time.Until(session.Expiration); session.SessionToken == "" || left > 15*time.Minute || left < 10*time.Minute {
		t.Errorf("the session is valid for %s", left)
	}
	if text, err := m.get(t, session, "reports", "2026/q1"); err != nil || text != "first quarter" {
		t.Errorf("what the policy allows: %q, %v", text, err)
	}
	_, err := m.get(t, session, "reports", "2025/q4")
	if err := accessDenied(err); err != nil {
		t.Errorf("reading elsewhere: %v", err)
	}
	if err := accessDenied(m.put(t, session, "reports", "2026/q1", "made up")); err != nil {
		t.Errorf("writing: %v", err)
	}
	session.SessionToken = ""
	if _, err := m.get(t, session, "reports", "2026/q1"); err == nil {
		t.Error("the session's keys work without its token")
	}
}

// startTestProvider starts the part of an OpenID provider that a relying party
// needs to verify tokens: the configuration and the keys. It returns a function
// that signs tokens.
func startTestProvider(t testing.TB) (provider minioOpenID, token func(audience string) string) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	jwk := jose.JSONWebKey{Key: key, KeyID: "1", Algorithm: string(jose.ES256), Use: "sig"}
	signer, err := jose.NewSigner(jose.SigningKey{Algorithm: jose.ES256, Key: jwk}, nil)
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	provider = minioOpenID{clientID: "sts.minio.test", caFile: filepath.Join(dir, "ca.pem")}
	cert, private := filepath.Join(dir, "cert.pem"), filepath.Join(dir, "key.pem")
	loopbackTLS(t, provider.caFile, cert, private)
	pair, err := tls.LoadX509KeyPair(cert, private)
	if err != nil {
		t.Fatal(err)
	}
	mux := http.NewServeMux()
	s := httptest.NewUnstartedServer(mux)
	s.TLS = &tls.Config{Certificates: []tls.Certificate{pair}}
	s.StartTLS()
	t.Cleanup(s.Close)
	answer := func(path string, v any) {
		mux.HandleFunc("GET "+path, func(w http.ResponseWriter, _ *http.Request) { _ = json.NewEncoder(w).Encode(v) })
	}
	answer("/.well-known/openid-configuration", fields{"issuer": s.URL, "jwks_uri": s.URL + "/keys"})
	answer("/keys", jose.JSONWebKeySet{Keys: []jose.JSONWebKey{jwk.Public()}})
	provider.configURL = s.URL + "/.well-known/openid-configuration"
	return provider, func(audience string) string {
		now := time.Now()
		text, err := jwt.Signed(signer).Claims(jwt.Claims{
			Issuer: s.URL, Subject: "spiffe://acme.test/triage", Audience: jwt.Audience{audience},
			IssuedAt: jwt.NewNumericDate(now), Expiry: jwt.NewNumericDate(now.Add(5 * time.Minute)),
		}).Serialize()
		if err != nil {
			t.Fatal(err)
		}
		return text
	}
}
