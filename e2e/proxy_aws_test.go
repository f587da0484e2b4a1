package e2e

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// testProxyAWS runs clients of S3 through "broker proxy". They sign with placeholders, and
// the proxy signs each call again with a session that they never see.
func testProxyAWS(t *testing.T, c *cloud) {
	if os.Geteuid() != 0 {
		t.Skip("a name for the server needs a mount namespace, and that needs root")
	}
	home := t.TempDir()
	hosts, upload := filepath.Join(home, "hosts"), filepath.Join(home, "upload")
	if err := errors.Join(os.WriteFile(hosts, []byte("127.0.0.1 localhost "+upstreamName+"\n"), 0o600), os.WriteFile(upload, []byte(strings.Repeat("report\n", 100_000)), 0o600)); err != nil {
		t.Fatal(err)
	}
	endpoint := fmt.Sprintf("https://%s:%d", upstreamName, c.minio.port)
	run := func(command ...string) (string, string, error) {
		args := []string{"-m", "sh", "-c", `mount --bind "$0" /etc/hosts && exec "$@"`, hosts,
			c.agent, "proxy", "--server", "https://" + c.listen, "--upstream-ca", c.minio.caFile(), "--entitlement", "reports-edge", "--"}
		cmd := exec.CommandContext(t.Context(), "unshare", append(args, command...)...)
		cmd.Env = append(os.Environ(), append(c.spire.environment(), "HOME="+home, "AWS_DEFAULT_REGION=us-east-1", "AWS_PROFILE=of-the-user", "AWS_SESSION_TOKEN=of-the-user",
			"MC_HOST_it=https://added-by-broker-proxy:added-by-broker-proxy@"+strings.TrimPrefix(endpoint, "https://"))...)
		return outputOf(cmd)
	}
	aws := func(args ...string) (string, string, error) {
		return run(append([]string{"aws", "--endpoint-url", endpoint, "s3"}, args...)...)
	}
	mc := func(args ...string) (string, string, error) {
		return run(append([]string{filepath.Join(c.minio.bin, "mc"), "--config-dir", filepath.Join(home, "mc")}, args...)...)
	}
	for name, f := range map[string]func() (string, string, error){
		"aws cp": func() (string, string, error) { return aws("cp", "s3://reports/acme/q1", "-") },
		"mc cat": func() (string, string, error) { return mc("cat", "it/reports/acme/q1") },
		"as env": func() (string, string, error) {
			return run("sh", "-c", `echo "$AWS_SECRET_ACCESS_KEY $AWS_SESSION_TOKEN $AWS_PROFILE"; echo secret of acme/q1`)
		},
		"aws put": func() (string, string, error) {
			out, errs, err := aws("cp", upload, "s3://reports/acme/by-aws")
			return out + "secret of acme/q1", errs, err
		},
		"mc put": func() (string, string, error) {
			out, errs, err := mc("cp", upload, "it/reports/acme/by-mc")
			return out + "secret of acme/q1", errs, err
		},
	} {
		out, errs, err := f()
		if err != nil || !strings.Contains(out, "secret of acme/q1") {
			t.Errorf("%s: got %q, %v\n%s", name, out, err, errs)
		}
		if strings.Contains(out, "of-the-user") || sessionKey.MatchString(out+errs) {
			t.Errorf("%s: the output has a credential: %s%s", name, out, errs)
		}
	}
	publisher := c.minio.user(t, "reader", "readonly")
	for _, key := range []string{"by-aws", "by-mc"} {
		if text, err := c.minio.get(t, publisher, "reports", "acme/"+key); err != nil || len(strings.TrimSpace(text)) != 700_000-1 {
			t.Errorf("%s: got %d bytes, %v", key, len(text), err)
		}
	}
	for name, args := range map[string][]string{"another prefix": {"cp", "s3://reports/other/q1", "-"}, "another bucket": {"ls", "s3://private/"}, "deleting": {"rm", "s3://reports/acme/q1"}} {
		if out, errs, err := aws(args...); err == nil || !strings.Contains(errs, "broker: refused") {
			t.Errorf("%s: got %q, %v\n%s", name, out, err, errs)
		}
	}
}

// sessionKey matches session tokens of MinIO, which are JWTs.
var sessionKey = regexp.MustCompile(`eyJ[A-Za-z0-9_-]{20,}\.`)
