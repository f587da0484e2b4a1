package main

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/base64"
	"encoding/pem"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/goccy/go-yaml"
)

// withoutSPIRE returns the guide, and its blocks of a language.
func withoutSPIRE(t *testing.T, language string) (guide string, blocks []string) {
	t.Helper()
	text, err := os.ReadFile("../../docs/without-spire.md")
	if err != nil {
		t.Fatal(err)
	}
	for _, m := range regexp.MustCompile("(?s)```"+language+"\n(.*?)```\n").FindAllStringSubmatch(string(text), -1) {
		blocks = append(blocks, m[1])
	}
	if len(blocks) == 0 {
		t.Fatalf("the guide has no block of %s", language)
	}
	return string(text), blocks
}

// block returns the block whose first line is a comment with a name.
func block(t *testing.T, blocks []string, name string) string {
	t.Helper()
	for _, b := range blocks {
		first, rest, _ := strings.Cut(b, "\n")
		if strings.HasSuffix(first, " "+name) {
			return rest
		}
	}
	t.Fatalf("the guide has no %s", name)
	return ""
}

// A newcomer without SPIRE follows the guide from the build to the first credential: these
// are its own lines.
func TestGuideWithoutSPIRE(t *testing.T) {
	guide, blocks := withoutSPIRE(t, "sh")
	if len(blocks) < 4 {
		t.Fatalf("got %d blocks of commands", len(blocks))
	}
	q := newQuickstart(t)
	stop := q.startDev(strings.TrimPrefix(blocks[0], "make build\n"))
	defer stop()
	approval := regexp.MustCompile(`(?m)^    export BROKER_ID_TOKEN=.*\n    broker ci .* --wait 10m -- .*\n`).FindString(guide)
	if approval == "" {
		t.Fatal("the guide has no job that waits")
	}
	script := strings.Join(blocks[1:], "") + strings.Replace(strings.TrimSuffix(approval, "\n"), "10m", "1ms", 1) + " || test $? = 4\n"
	out, err := q.shell(t.Context(), script).CombinedOutput()
	if err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	at := 0
	for _, want := range []string{
		"spiffe://ci.acme.test/repository/74", "oidc-token", // whoami
		"broker: tickets-api until ", `"tickets"`, "broker: tickets-api returned",
		"token_spent", "the token was used before",
		"no rule matches another branch", "no rule matches another repository",
		"broker: tickets-api needs approval by 1 of support\n  http", "/ui/requests/req_", "broker: pending: tickets-api was not approved in time",
	} {
		found := bytes.Index(out[at:], []byte(want))
		if found < 0 {
			t.Fatalf("%q is not in, or not after what comes before it in\n%s", want, out)
		}
		at += found
	}
	if bytes.Contains(out, []byte("eyJ")) {
		t.Errorf("the output has a token:\n%s", out)
	}
}

// The guide's operator file and policies are valid, and decide what it says.
func TestOperatorFileOfGuideWithoutSPIRE(t *testing.T) {
	_, yamls := withoutSPIRE(t, "yaml")
	_, cedars := withoutSPIRE(t, "cedar")
	dir := t.TempDir()
	if err := os.Mkdir(filepath.Join(dir, "policies"), 0o700); err != nil {
		t.Fatal(err)
	}
	certificate, key := selfSigned(t)
	for name, text := range map[string]string{
		"broker.yaml": block(t, yamls, "broker.yaml"), "policies/orders.cedar": block(t, cedars, "policies/orders.cedar"),
		"tls.crt": certificate, "tls.key": key, "vault.token": "s.token", "cluster-jwks.json": clusterKeys(t),
		"client.secret": "secret", "policies/groups.yaml": block(t, yamls, "policies/groups.yaml"),
		"seal.key":                  base64.StdEncoding.EncodeToString(bytes.Repeat([]byte{7}, 32)),
		"policies/orders_test.yaml": ordersScenarios,
	} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	for _, args := range [][]string{{"check", filepath.Join(dir, "broker.yaml")}, {"policy", "test", "--config", filepath.Join(dir, "broker.yaml")}} {
		var out, errs bytes.Buffer
		if code := run(t.Context(), args, terminal{in: strings.NewReader(""), out: &out, err: &errs, getenv: func(string) string { return "" }}); code != exitOK {
			t.Errorf("broker %s: got exit code %d\n%s%s", strings.Join(args, " "), code, out.String(), errs.String())
		}
	}
}

const ordersScenarios = `
scenarios:
  - {name: a job of GitHub reads, principal: "spiffe://github.acme.test/repository/74/main", entitlement: orders-db-ro, expect: permit, policies: [jobs-read-orders]}
  - {name: a job of GitLab reads, principal: "spiffe://gitlab.acme.test/project/22/main", entitlement: orders-db-ro, expect: permit, policies: [gitlab-jobs-read-orders]}
  - {name: a pod reads, principal: "spiffe://k8s.acme.test/ns/payments/sa/api", entitlement: orders-db-ro, expect: permit, policies: [payments-read-orders]}
  - {name: a job of another repository, principal: "spiffe://github.acme.test/repository/75/main", entitlement: orders-db-ro, expect: deny, policies: []}
  - {name: customers need an approval, principal: "spiffe://github.acme.test/repository/74/main", entitlement: customers-db-ro, expect: permit, obligations: {approval: 1 of support}}
  - {name: a job does not write, principal: "spiffe://github.acme.test/repository/74/main", entitlement: orders-db-rw, expect: deny, policies: [svids-write-orders]}
`

// The files for platforms are YAML, and their commands are those of this program.
func TestPlatformsOfGuideWithoutSPIRE(t *testing.T) {
	guide, yamls := withoutSPIRE(t, "yaml")
	var workflow struct {
		Permissions map[string]string `yaml:"permissions"`
		Jobs        map[string]struct {
			Env   map[string]string `yaml:"env"`
			Steps []struct {
				Run string `yaml:"run"`
			} `yaml:"steps"`
		} `yaml:"jobs"`
	}
	parseYAML(t, block(t, yamls, ".github/workflows/report.yml"), &workflow)
	job := workflow.Jobs["report"]
	if workflow.Permissions["id-token"] != "write" || job.Env["BROKER_URL"] == "" || len(job.Steps) != 2 {
		t.Errorf("got the workflow %+v", workflow)
	}
	checkCommand(t, strings.Fields(job.Steps[1].Run)[1:])

	var gitLab map[string]gitLabJob
	parseYAML(t, block(t, yamls, ".gitlab-ci.yml"), &gitLab)
	report := gitLab["report"]
	if audience := report.Tokens["BROKER_ID_TOKEN"].Audience; audience == "" || audience != report.Variables["BROKER_URL"] {
		t.Errorf("got the job %+v", report)
	}
	checkCommand(t, strings.Fields(report.Script[0]))

	var pod struct {
		Spec struct {
			Containers []struct {
				Command []string            `yaml:"command"`
				Env     []map[string]string `yaml:"env"`
			} `yaml:"containers"`
			Volumes []struct {
				Projected struct {
					Sources []struct {
						Token struct {
							Audience string `yaml:"audience"`
							Path     string `yaml:"path"`
						} `yaml:"serviceAccountToken"`
					} `yaml:"sources"`
				} `yaml:"projected"`
			} `yaml:"volumes"`
		} `yaml:"spec"`
	}
	parseYAML(t, block(t, yamls, "pod.yaml"), &pod)
	token := pod.Spec.Volumes[0].Projected.Sources[0].Token
	container := pod.Spec.Containers[0]
	if token.Audience != container.Env[0]["value"] || !strings.HasSuffix(container.Env[1]["value"], "/"+token.Path) {
		t.Errorf("got the pod %+v", pod)
	}
	checkCommand(t, container.Command)

	for _, name := range []string{"deploy/github-action", "vault.md", "operator.md#attestoidc_workloads"} {
		if !strings.Contains(guide, name) {
			t.Errorf("the guide does not name %s", name)
		}
	}
}

type gitLabJob struct {
	Tokens map[string]struct {
		Audience string `yaml:"aud"`
	} `yaml:"id_tokens"`
	Variables map[string]string `yaml:"variables"`
	Script    []string          `yaml:"script"`
}

func TestGitLabFile(t *testing.T) {
	text, err := os.ReadFile("../../deploy/gitlab/broker.gitlab-ci.yml")
	if err != nil {
		t.Fatal(err)
	}
	var file map[string]gitLabJob
	parseYAML(t, string(text), &file)
	if job := file[".broker"]; job.Tokens["BROKER_ID_TOKEN"].Audience == "" || job.Tokens["BROKER_ID_TOKEN"].Audience != job.Variables["BROKER_URL"] {
		t.Errorf("got %+v", file)
	}
}

func parseYAML(t *testing.T, text string, into any) {
	t.Helper()
	if err := yaml.Unmarshal([]byte(text), into); err != nil {
		t.Fatalf("%v in\n%s", err, text)
	}
}

// checkCommand checks that a command line of this program has flags and arguments that it
// accepts.
func checkCommand(t *testing.T, words []string) {
	t.Helper()
	if len(words) < 2 || words[0] != "broker" {
		t.Fatalf("got the command %q", words)
	}
	c, rest, err := (&app{}).root().Find(words[1:])
	if err == nil {
		err = c.ParseFlags(rest)
	}
	if err == nil {
		err = c.Args(c, c.Flags().Args())
	}
	if err != nil {
		t.Errorf("%q: %v", words, err)
	}
}

// selfSigned returns a certificate and its key, in PEM.
func selfSigned(t *testing.T) (certificate, key string) {
	t.Helper()
	s := httptest.NewTLSServer(http.NotFoundHandler())
	defer s.Close()
	der, err := x509.MarshalPKCS8PrivateKey(s.TLS.Certificates[0].PrivateKey)
	if err != nil {
		t.Fatal(err)
	}
	encode := func(kind string, der []byte) string {
		return string(pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der}))
	}
	return encode("CERTIFICATE", s.Certificate().Raw), encode("PRIVATE KEY", der)
}

// clusterKeys returns a JWK Set with a key.
func clusterKeys(t *testing.T) string {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	point, err := key.PublicKey.Bytes()
	if err != nil {
		t.Fatal(err)
	}
	encode := base64.RawURLEncoding.EncodeToString
	return fmt.Sprintf(`{"keys":[{"kty":"EC","use":"sig","alg":"ES256","crv":"P-256","kid":"1","x":%q,"y":%q}]}`, encode(point[1:33]), encode(point[33:]))
}
