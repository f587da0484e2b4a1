package e2e

import (
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"accessbroker.internal/api"
)

// The broker has a listener for workloads, which trust SPIFFE, and one for an STS
// that trusts the broker as an OpenID provider and needs a web certificate.
const awsOperatorFile = `
server:
  external_url: %[1]s
  listeners:
    - {listen: "%[2]s", tls: {svid: true}, client_certs: optional, serve: [api, oauth, log]}
    - {listen: "%[3]s", tls: {cert: web.pem, key: web.key}, client_certs: off, serve: [oauth]}
  admin_socket: admin.sock
  seal_keys: [{file: seal.key}]
  drain: {delay: 0s}
attest:
  trust_domain: acme.test
  workload_api: %[4]s
store: sqlite:broker.db
policies: policies
issuers:
  tickets: {token: {audience: "https://tickets.acme.test"}}
  aws: {aws: {region: us-east-1, endpoint: "%[5]s", ca_file: "%[6]s", auth: {web_identity: {}}}}
  aws-own: {aws: {region: us-east-1, endpoint: "%[5]s", ca_file: "%[6]s", auth: {assume_role: {credentials_file: own-credentials}}}}
entitlements:
  tickets-api: {issuer: tickets, scopes: [tickets:read]}
  reports:
    issuer: aws
    aws: {role_arn: "%[7]s"}
    parameters: &folder {prefix: {pattern: "[a-z0-9-]{1,40}", required: true}}
    scopes: &reports
      read: {actions: [s3:GetObject], resources: ["arn:aws:s3:::reports/${prefix}/*"]}
      write: {actions: [s3:PutObject], resources: ["arn:aws:s3:::reports/${prefix}/*"]}
    max_ttl: 1h
  reports-own:
    issuer: aws-own
    aws: {role_arn: "arn:aws:iam::123456789012:role/reports"}
    parameters: *folder
    scopes: *reports
    max_ttl: 1h
  reports-brief:
    issuer: aws
    aws: {role_arn: "%[7]s"}
    parameters: *folder
    scopes: *reports
    max_ttl: 15m
  reports-edge:
    issuer: aws
    aws: {role_arn: "%[7]s"}
    scopes: {use: {actions: [s3:GetObject, s3:PutObject], resources: ["arn:aws:s3:::reports/acme/*"]}}
    default_scopes: [use]
    egress:
      inject: {as: aws-sigv4, service: s3, region: us-east-1}
      allow:
        - {hosts: ["%[8]s"], methods: [GET, HEAD, PUT], paths: [/reports/, "/reports/acme/*"], headers: [x-amz-*, amz-sdk-*], addresses: [127.0.0.0/8]}
`

// TestAWS issues sessions of a role through an STS that trusts the broker as an
// OpenID provider, so the broker has no secret of the STS. The AWS command line
// gets them by credential_process, reads what the scope allows, and is refused
// everything else.
func TestAWS(t *testing.T) {
	t.Parallel() // it mostly waits
	c := cloudOf(t)
	for _, entitlement := range []string{"reports", "reports-own"} {
		t.Run("credential_process of "+entitlement, func(t *testing.T) { testCredentialProcess(t, c, entitlement) })
		t.Run("exec with "+entitlement, func(t *testing.T) { testExecAWS(t, c, entitlement) })
	}
	t.Run("botocore", func(t *testing.T) { testBotocore(t, c) })
	t.Run("proxy", func(t *testing.T) { testProxyAWS(t, c) })
}

// TestAWSOutages has an STS of its own: the tests move its clock, put a proxy
// before it and stop it.
func TestAWSOutages(t *testing.T) {
	t.Parallel() // it mostly waits
	c := startCloud(t, spireOf(t))
	t.Run("clock of the STS", func(t *testing.T) { testSTSClock(t, c) })
	t.Run("contract ends", func(t *testing.T) { testSessionEndsWithContract(t, c) })
	t.Run("broker killed at a point", func(t *testing.T) { testSessionsKilledAt(t, c) })
	t.Run("throttled", func(t *testing.T) { testThrottled(t, c) })
	t.Run("refusals", func(t *testing.T) { testAWSRefusals(t, c) })
}

// A cloud is a broker between SPIRE and an STS. The bucket "reports" has an
// object for each of two customers.
type cloud struct {
	*world
	minio *minio
	agent string // the binary of the workload /agent/reports

	configureSTS func(endpoint, caFile string) // points the operator's file to another STS
}

func startCloud(t testing.TB, s *spire) *cloud {
	t.Helper()
	c := &cloud{world: newBroker(t, s)}
	w := c.world
	web := fmt.Sprintf("127.0.0.1:%d", freePort(t))
	loopbackTLS(t, filepath.Join(w.dir, "web-ca.pem"), filepath.Join(w.dir, "web.pem"), filepath.Join(w.dir, "web.key"))
	provider := minioOpenID{configURL: "https://" + web + "/.well-known/openid-configuration", caFile: filepath.Join(w.dir, "web-ca.pem"), clientID: "sts.amazonaws.com"}
	w.write(t, "policies/all.cedar", agentsPolicy)
	c.writeOwn(t, awsCredential{AccessKeyID: "nobody", SecretAccessKey: "yet"})
	configure := func(endpoint, ca, role string) {
		w.write(t, "broker.yaml", fmt.Sprintf(awsOperatorFile, "https://"+web, w.listen, web, s.socket(), endpoint, ca, role, strings.Replace(endpoint, "127.0.0.1", upstreamName, 1)))
	}
	c.configureSTS = func(endpoint, ca string) { configure(endpoint, ca, c.minio.roleARN()) }
	// MinIO reads the provider's configuration when it starts, so the broker starts
	// first and is then configured with MinIO's address.
	configure("https://127.0.0.1:1", "web-ca.pem", (&minio{openID: provider}).roleARN())
	w.start(t)
	c.minio = startMinIO(t, provider)
	w.broker.stop()
	configure(c.minio.address(), c.minio.caFile(), c.minio.roleARN())
	w.start(t)

	c.minio.must(t, "mb", "it/reports")
	publisher := c.minio.user(t, "publisher", "readwrite")
	c.writeOwn(t, publisher) // the broker reads the file for each session
	for _, key := range []string{"acme/q1", "other/q1"} {
		if err := c.minio.put(t, publisher, "reports", key, "secret of "+key); err != nil {
			t.Fatal(err)
		}
	}
	c.agent = copyBinary(t, w.bin, "agent")
	s.register(t, "/agent/reports", c.agent)
	eventually(t, "the command line's identity", time.Minute, func() error {
		if _, errs, code := c.run("whoami"); code != 0 {
			return fmt.Errorf("%s", errs)
		}
		return nil
	})
	return c
}

// writeOwn writes the credentials with which the broker assumes roles.
func (c *cloud) writeOwn(t testing.TB, own awsCredential) {
	t.Helper()
	c.write(t, "own-credentials", fmt.Sprintf("[default]\naws_access_key_id = %s\naws_secret_access_key = %s\n", own.AccessKeyID, own.SecretAccessKey))
}

// run runs a command as the agent. Workloads call a listener of their own; the STS
// trusts the one at the external URL.
func (c *cloud) run(args ...string) (stdout, stderr string, code int) {
	return c.cli(c.agent, append(args, "--server", "https://"+c.listen)...)
}

// s3 runs the AWS command line, which fetches its credentials from the broker by
// credential_process.
func (c *cloud) s3(t testing.TB, entitlement string, args ...string) (string, error) {
	t.Helper()
	config := filepath.Join(c.dir, "aws-config")
	text := fmt.Sprintf("[default]\nregion = us-east-1\ncredential_process = %s aws %s --scope read --param prefix=acme --why report\n", c.agent, entitlement)
	if err := os.WriteFile(config, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(installed(t, "aws"), append([]string{"--endpoint-url", c.minio.address(), "--ca-bundle", c.minio.caFile(), "s3"}, args...)...)
	cmd.Env = append(os.Environ(), append(c.spire.environment(), "AWS_CONFIG_FILE="+config, "AWS_SHARED_CREDENTIALS_FILE=/dev/null",
		"BROKER_URL=https://"+c.listen, "XDG_RUNTIME_DIR="+c.dir, "AWS_EC2_METADATA_DISABLED=true")...)
	out, err := cmd.CombinedOutput()
	return strings.TrimSpace(string(out)), err
}

// testExecAWS passes a session to the AWS command line, which finds it in the files of
// "broker exec".
func testExecAWS(t *testing.T, c *cloud, entitlement string) {
	aws := func(scope string, args ...string) (string, string, int) {
		all := []string{"exec", entitlement, "--scope", scope, "--param", "prefix=acme", "--server", "https://" + c.listen, "--",
			"env", "AWS_DEFAULT_REGION=us-east-1", "AWS_CONFIG_FILE=/dev/null",
			"aws", "--endpoint-url", c.minio.address(), "--ca-bundle", c.minio.caFile(), "s3"}
		return c.cli(c.agent, append(all, args...)...)
	}
	if out, errs, code := aws("read", "cp", "s3://reports/acme/q1", "-"); code != 0 || strings.TrimSpace(out) != "secret of acme/q1" {
		t.Errorf("what the scope allows: %d %q %s", code, out, errs)
	}
	if out, errs, code := aws("read", "cp", c.minio.caFile(), "s3://reports/acme/q3"); code == 0 || !strings.Contains(errs, "AccessDenied") {
		t.Errorf("writing with a session that may read: %d %q %s", code, out, errs)
	}
	if out, errs, code := aws("write", "cp", c.minio.caFile(), "s3://reports/acme/of-"+entitlement); code != 0 {
		t.Errorf("writing with a session that may write: %d %q %s", code, out, errs)
	}
}

func testCredentialProcess(t *testing.T, c *cloud, entitlement string) {
	if out, err := c.s3(t, entitlement, "cp", "s3://reports/acme/q1", "-"); err != nil || out != "secret of acme/q1" {
		t.Errorf("what the scope allows: %v, %q", err, out)
	}
	for name, args := range map[string][]string{
		"another prefix": {"cp", "s3://reports/other/q1", "-"},
		"writing":        {"cp", c.bin, "s3://reports/acme/q2"},
		"listing":        {"ls", "s3://reports/"},
	} {
		if out, err := c.s3(t, entitlement, args...); err == nil || !strings.Contains(out, "AccessDenied") && !strings.Contains(out, "403") {
			t.Errorf("%s: %v, %q", name, err, out)
		}
	}
}

// botocoreCalls makes six calls with one client, as a program that runs for a while.
const botocoreCalls = `
import sys, botocore.session
session = botocore.session.get_session()
client = session.create_client("s3", endpoint_url=sys.argv[1], verify=sys.argv[2])
for _ in range(6):
    assert client.get_object(Bucket="reports", Key="acme/q1")["Body"].read().strip() == b"secret of acme/q1"
`

// testBotocore lets the SDK of Python make six calls. It runs the credential_process
// once if the session is long enough for it, and for each call otherwise; the broker
// issues one session in any case.
func testBotocore(t *testing.T, c *cloud) {
	for entitlement, once := range map[string]bool{"reports": true, "reports-brief": false} {
		before := c.leases(t, entitlement)
		runs, config, script := filepath.Join(c.dir, "runs-"+entitlement), filepath.Join(c.dir, "boto-config"), filepath.Join(c.dir, "process")
		c.write(t, "process", fmt.Sprintf("#!/bin/sh\necho run >> %s\nexec %s aws %s --scope read --param prefix=acme --why botocore\n", runs, c.agent, entitlement))
		if err := os.Chmod(script, 0o700); err != nil {
			t.Fatal(err)
		}
		c.write(t, "boto-config", "[default]\nregion = us-east-1\ncredential_process = "+script+"\n")
		cmd := exec.Command(pythonWithBotocore(t), "-c", botocoreCalls, c.minio.address(), c.minio.caFile())
		cmd.Env = append(os.Environ(), append(c.spire.environment(), "AWS_CONFIG_FILE="+config, "AWS_SHARED_CREDENTIALS_FILE=/dev/null",
			"BROKER_URL=https://"+c.listen, "XDG_RUNTIME_DIR="+c.dir, "AWS_EC2_METADATA_DISABLED=true")...)
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("%s: %v\n%s", entitlement, err, out)
		}
		text, err := os.ReadFile(runs)
		if err != nil {
			t.Fatal(err)
		}
		if n := strings.Count(string(text), "run"); (n == 1) != once || n > 1 && n < 6 {
			t.Errorf("%s: the credential_process ran %d times for six calls, want once: %t", entitlement, n, once)
		}
		if issued := c.leases(t, entitlement) - before; issued != 1 {
			t.Errorf("%s: the broker issued %d sessions, want 1", entitlement, issued)
		}
	}
}

// leases counts the agent's leases of an entitlement.
func (c *cloud) leases(t testing.TB, entitlement string) int {
	t.Helper()
	out, errs, code := c.run("leases", "--entitlement", entitlement, "-o", "json")
	var page api.LeasePage
	if err := json.Unmarshal([]byte(out), &page); err != nil || code != 0 || page.Next != "" {
		t.Fatalf("leases: %d, %v, %q\n%s", code, err, page.Next, errs)
	}
	return len(page.Leases)
}

// pythonWithBotocore returns a Python that has the SDK. Debian's awscli brings it along.
func pythonWithBotocore(t testing.TB) string {
	t.Helper()
	installed(t, "aws")
	for _, python := range []string{"python3", "/usr/bin/python3"} {
		if exec.Command(python, "-c", "import botocore.session").Run() == nil {
			return python
		}
	}
	t.Fatal("no Python has botocore: install it (apt-get install python3-botocore)")
	return ""
}

// testAWSRefusals requests sessions that no STS issues. It also returns a session:
// the broker reports that it ends only by expiring. At the end it stops the STS.
func testAWSRefusals(t *testing.T, c *cloud) {
	for name, test := range map[string]struct {
		args []string
		want api.Code
	}{
		"a wildcard": {[]string{"--param", "prefix=*"}, api.InvalidParameter},
		"too short":  {[]string{"--param", "prefix=acme", "--ttl", "5m"}, api.InvalidTTL},
		"no prefix":  {nil, api.InvalidParameter},
	} {
		_, errs, code := c.run(append([]string{"request", "reports", "--scope", "read"}, test.args...)...)
		if code == 0 || !strings.Contains(errs, string(test.want)) {
			t.Errorf("%s: %d %s", name, code, errs)
		}
	}
	out, errs, code := c.run("request", "reports", "--scope", "write", "--param", "prefix=acme", "--ttl", "20m", "-o", "env")
	if code != 0 || !strings.Contains(out, "export AWS_SESSION_TOKEN=") {
		t.Fatalf("request -o env: %d %s", code, errs)
	}
	_, rest, _ := strings.Cut(out, "BROKER_LEASE='")
	lease, _, _ := strings.Cut(rest, "'")
	if out, errs, code := c.run("return", lease); code != 0 || !strings.Contains(out, "not possible; the credential works until ") {
		t.Errorf("return: %d %s%s", code, out, errs)
	}
	c.minio.stop()
	_, errs, code = c.run("request", "reports", "--scope", "read", "--param", "prefix=acme")
	if code == 0 || !strings.Contains(errs, string(api.IssuerUnavailable)) {
		t.Errorf("without STS: %d %s", code, errs)
	}
}
