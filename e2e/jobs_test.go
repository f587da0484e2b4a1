package e2e

import (
	"bufio"
	"context"
	"crypto/tls"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"accessbroker.internal/api"
	"accessbroker.internal/e2e/servers"
)

const jobsFile = `
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
    github:
      issuer: %[4]s
      trust_domain: ci.acme.test
      rules:
        - claims: {repository_owner_id: "65", repository: acme/shop, repository_id: "74", ref: refs/heads/main}
          spiffe_id: spiffe://ci.acme.test/github/${repository_owner_id}/${repository_id}
    gitlab:
      issuer: %[5]s
      audience: broker
      trust_domain: ci.acme.test
      algorithms: [RS256]
      rules:
        - claims: {project_id: "22", ref_protected: "true", environment: production, user_access_level: [maintainer, owner]}
          spiffe_id: spiffe://ci.acme.test/gitlab/${namespace_id}/${project_id}
store: sqlite:broker.db
policies: policies
issuers:
  tickets: {token: {audience: https://tickets.acme.test}}
entitlements:
  tickets-api: {issuer: tickets, scopes: [tickets:read], max_ttl: 15m}
`

const jobsPolicy = `
@id("jobs")
permit (principal in TrustDomain::"ci.acme.test", action == Action::"request", resource == Entitlement::"tickets-api")
when { principal.attested == "oidc" };
`

// A ciService is npm's oidc-provider in the place of a CI service.
type ciService struct {
	t      *testing.T
	dir    string
	port   int
	issuer string
	cmd    *exec.Cmd
}

func newCIService(t *testing.T) *ciService {
	t.Helper()
	modules, err := servers.Modules("delegation")
	if err != nil {
		t.Fatal(err)
	}
	s := &ciService{t: t, dir: t.TempDir(), port: freePort(t)}
	s.issuer = fmt.Sprintf("http://127.0.0.1:%d", s.port)
	text, err := os.ReadFile(filepath.Join("clients", "delegation", "jobs.mjs"))
	if err == nil {
		err = os.WriteFile(filepath.Join(s.dir, "jobs.mjs"), text, 0o600)
	}
	if err == nil {
		err = os.Symlink(modules, filepath.Join(s.dir, "node_modules"))
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.stop)
	return s
}

// run starts the service with a new key.
func (s *ciService) run(kid string) {
	s.t.Helper()
	s.cmd = exec.CommandContext(context.Background(), installed(s.t, "node"), filepath.Join(s.dir, "jobs.mjs"), fmt.Sprint(s.port), kid)
	out, err := s.cmd.StdoutPipe()
	if err == nil {
		err = s.cmd.Start()
	}
	if err != nil {
		s.t.Fatal(err)
	}
	if line, err := bufio.NewReader(out).ReadString('\n'); err != nil || strings.TrimSpace(line) != s.issuer {
		s.t.Fatalf("the CI service did not start: %q, %v", line, err)
	}
}

func (s *ciService) stop() {
	if s.cmd != nil {
		_ = s.cmd.Process.Kill()
		_ = s.cmd.Wait()
		s.cmd = nil
	}
}

// token returns a token with the claims and, if given, another header and key.
func (s *ciService) token(claims map[string]any, more ...string) string {
	s.t.Helper()
	text, err := json.Marshal(claims)
	if err != nil {
		s.t.Fatal(err)
	}
	form := url.Values{"grant_type": {"job"}, "client_id": {"runner"}, "client_secret": {"s3cret-of-runner"}, "claims": {string(text)}}
	for i := 0; i < len(more); i += 2 {
		form.Set(more[i], more[i+1])
	}
	resp, err := http.PostForm(s.issuer+"/token", form)
	if err != nil {
		s.t.Fatal(err)
	}
	defer func() { _ = resp.Body.Close() }()
	var answer struct {
		Token string `json:"id_token"`
	}
	if err := json.NewDecoder(resp.Body).Decode(&answer); err != nil || answer.Token == "" {
		s.t.Fatalf("the CI service: got %d, %v", resp.StatusCode, err)
	}
	return answer.Token
}

// with returns claims with changes.
func with(claims, changes map[string]any) map[string]any {
	all := maps.Clone(claims)
	maps.Copy(all, changes)
	return all
}

// gitHubJob are the claims of a push to main, as GitHub documents them ("OpenID Connect
// reference").
func gitHubJob(audience string) map[string]any {
	return map[string]any{
		"sub": "repo:acme/shop:ref:refs/heads/main", "aud": audience, "ref": "refs/heads/main", "ref_type": "branch", "ref_protected": "true", "sha": "example-sha",
		"repository": "acme/shop", "repository_id": "74", "repository_owner": "acme", "repository_owner_id": "65", "repository_visibility": "private",
		"actor": "ana", "actor_id": "12", "workflow": "deploy", "workflow_ref": "acme/shop/.github/workflows/deploy.yml@refs/heads/main", "workflow_sha": "example-sha",
		"job_workflow_ref": "acme/shop/.github/workflows/deploy.yml@refs/heads/main", "job_workflow_sha": "example-sha", "event_name": "push",
		"run_id": "30433642", "run_number": "10", "run_attempt": "2", "head_ref": "", "base_ref": "", "runner_environment": "github-hosted", "enterprise": "acme", "enterprise_id": "2",
	}
}

// gitLabJob are the claims of a deployment, as GitLab documents them ("ID token authentication").
func gitLabJob(audience string) map[string]any {
	return map[string]any{
		"sub": "project_path:acme/shop:ref_type:branch:ref:main", "aud": audience, "namespace_id": "72", "namespace_path": "acme", "project_id": "22", "project_path": "acme/shop",
		"user_id": "1", "user_login": "ana", "user_email": "ana@acme.test", "user_access_level": "owner", "user_identities": []map[string]string{{"provider": "login", "extern_uid": "ana"}},
		"pipeline_id": "574", "pipeline_source": "push", "job_id": "302", "ref": "main", "ref_type": "branch", "ref_path": "refs/heads/main", "ref_protected": "true",
		"environment": "production", "environment_protected": "true", "deployment_tier": "production", "deployment_action": "start", "runner_id": 1, "runner_environment": "self-hosted",
		"sha": "714a629c0b401fdce83e847fc9589983fc6f46bc", "project_visibility": "private", "ci_config_ref_uri": "gitlab.acme.test/acme/shop//.gitlab-ci.yml@refs/heads/main", "ci_config_sha": "714a629c",
	}
}

// A jobsWorld is a broker without SPIRE, whose callers are jobs of two CI services.
type jobsWorld struct {
	*world
	gitHub, gitLab *ciService
	client         *http.Client
}

func startJobsWorld(t *testing.T) *jobsWorld {
	t.Helper()
	w := &jobsWorld{gitHub: newCIService(t), gitLab: newCIService(t)}
	w.world = newPlainWorld(t).world
	w.client = &http.Client{Timeout: 20 * time.Second, Transport: &http.Transport{TLSClientConfig: &tls.Config{InsecureSkipVerify: true}}}
	w.write(t, "policies/all.cedar", jobsPolicy)
	w.write(t, "broker.yaml", fmt.Sprintf(jobsFile, w.url, w.listen, w.dir, w.gitHub.issuer, w.gitLab.issuer))
	w.start(t) // the CI services are down
	return w
}

// exchange exchanges a token at the token endpoint, and returns the access token or the error.
func (w *jobsWorld) exchange(t *testing.T, token string) (text string, status int, code string) {
	t.Helper()
	form := url.Values{"grant_type": {api.GrantTokenExchange}, "subject_token": {token}, "subject_token_type": {api.TokenTypeJWT}, "audience": {"tickets-api"}, "scope": {"tickets:read"}}
	resp, err := w.client.PostForm(w.url+"/oauth2/token", form)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = resp.Body.Close() }()
	var answer struct {
		AccessToken string `json:"access_token"`
		ExpiresIn   int64  `json:"expires_in"`
		Error       string `json:"error"`
		Code        string `json:"code"`
	}
	if err := json.NewDecoder(resp.Body).Decode(&answer); err != nil {
		t.Fatal(err)
	}
	if answer.ExpiresIn > 300 {
		t.Errorf("the access token outlives the token of the job by %d s", answer.ExpiresIn-300)
	}
	return answer.AccessToken, resp.StatusCode, answer.Code
}

// subjectOf returns the sub of a token.
func subjectOf(t *testing.T, token string) string {
	t.Helper()
	parts := strings.Split(token, ".")
	if len(parts) != 3 {
		t.Fatalf("got no token")
	}
	payload, err := base64.RawURLEncoding.DecodeString(parts[1])
	var claims struct {
		Subject string `json:"sub"`
	}
	if err == nil {
		err = json.Unmarshal(payload, &claims)
	}
	if err != nil {
		t.Fatal(err)
	}
	return claims.Subject
}

// Jobs of CI services get credentials with their ID tokens, and attackers' jobs get none. The
// issuers are npm's oidc-provider, whose tokens have the claims that the services document.
func TestJobsOfCIServices(t *testing.T) {
	t.Parallel()
	w := startJobsWorld(t)
	t.Run("down", func(t *testing.T) { testCIServiceIsDown(t, w) })
	t.Run("shapes", func(t *testing.T) { testShapesOfJobs(t, w) })
	t.Run("attacks", func(t *testing.T) { testAttacksOfJobs(t, w) })
	t.Run("rotated", func(t *testing.T) { testRotatedCIService(t, w) })
}

// The broker starts without the issuers, and accepts tokens once they respond.
func testCIServiceIsDown(t *testing.T, w *jobsWorld) {
	header := base64.RawURLEncoding.EncodeToString([]byte(`{"alg":"RS256","typ":"JWT","kid":"first"}`))
	claims, _ := json.Marshal(with(gitHubJob(w.url), map[string]any{"iss": w.gitHub.issuer, "iat": time.Now().Unix(), "exp": time.Now().Unix() + 300}))
	if _, status, code := w.exchange(t, header+"."+base64.RawURLEncoding.EncodeToString(claims)+".AAAA"); status != 503 || code != "temporarily_unavailable" {
		t.Errorf("got %d %s, want temporarily_unavailable", status, code)
	}
	w.gitHub.run("first")
	w.gitLab.run("first")
	for want, token := range map[string]func() string{
		"spiffe://ci.acme.test/github/65/74": func() string { return w.gitHub.token(gitHubJob(w.url)) },
		"spiffe://ci.acme.test/gitlab/72/22": func() string { return w.gitLab.token(gitLabJob("broker")) },
	} {
		eventually(t, "the first token of "+want, time.Minute, func() error {
			text, status, code := w.exchange(t, token())
			if status == http.StatusServiceUnavailable {
				return errors.New(code)
			}
			if status != http.StatusOK || subjectOf(t, text) != want {
				t.Errorf("got %d %s, want a token of %s", status, code, want)
			}
			return nil
		})
	}
}

func testShapesOfJobs(t *testing.T, w *jobsWorld) {
	text, status, code := w.exchange(t, w.gitLab.token(gitLabJob("broker")))
	if status != 200 || subjectOf(t, text) != "spiffe://ci.acme.test/gitlab/72/22" {
		t.Errorf("GitLab: got %d %s", status, code)
	}
	token := w.gitHub.token(gitHubJob(w.url))
	if _, status, code := w.exchange(t, token); status != 200 {
		t.Errorf("GitHub: got %d %s", status, code)
	}
	if _, status, code := w.exchange(t, token); status == 200 || code != "token_spent" {
		t.Errorf("a token that is used twice: got %d %s, want token_spent", status, code)
	}
}

func testAttacksOfJobs(t *testing.T, w *jobsWorld) {
	gitHub := func(changes map[string]any, more ...string) string {
		return w.gitHub.token(with(gitHubJob(w.url), changes), more...)
	}
	gitLab := func(changes map[string]any) string { return w.gitLab.token(with(gitLabJob("broker"), changes)) }
	for name, token := range map[string]string{
		"another repository":            gitHub(map[string]any{"repository": "acme/blog", "repository_id": "75", "sub": "repo:acme/blog:ref:refs/heads/main"}),
		"a fork":                        gitHub(map[string]any{"repository": "mallory/shop", "repository_id": "99", "repository_owner": "mallory", "repository_owner_id": "13"}),
		"a repository of the same name": gitHub(map[string]any{"repository_id": "99", "repository_owner_id": "13"}),
		"a pull request":                gitHub(map[string]any{"event_name": "pull_request", "ref": "refs/pull/7/merge", "sub": "repo:acme/shop:pull_request", "head_ref": "x", "base_ref": "main"}),
		"a pull request in its target":  gitHub(map[string]any{"event_name": "pull_request_target"}),
		"a run after a pull request":    gitHub(map[string]any{"event_name": "workflow_run"}),
		"another branch":                gitHub(map[string]any{"ref": "refs/heads/x"}),
		"a tag":                         gitHub(map[string]any{"ref": "refs/tags/main", "ref_type": "tag"}),
		"another audience":              gitHub(map[string]any{"aud": "sts.amazonaws.com"}),
		"two audiences":                 gitHub(map[string]any{"aud": []string{w.url, "sts.amazonaws.com"}}),
		"an audience with a slash":      gitHub(map[string]any{"aud": w.url + "/"}),
		"an issuer with a slash":        gitHub(map[string]any{"iss": w.gitHub.issuer + "/"}),
		"the issuer of another service": gitHub(map[string]any{"iss": w.gitLab.issuer, "aud": "broker"}),
		"the claims of another service": w.gitHub.token(with(gitLabJob(w.url), nil)),
		"an expired token":              gitHub(map[string]any{"exp": time.Now().Unix() - 1}),
		"a token of a day":              gitHub(map[string]any{"exp": time.Now().Unix() + 86400}),
		"a token without an end":        gitHub(map[string]any{"exp": nil}),
		"a SPIFFE ID":                   gitHub(map[string]any{"sub": "spiffe://ci.acme.test/github/65/74"}),
		"a login":                       gitHub(map[string]any{"nonce": "n"}),
		"an access token":               gitHub(nil, "header", `{"typ": "at+jwt"}`),
		"a key that is not published":   gitHub(nil, "key", "other"),
		"a MAC with the public key":     gitHub(nil, "key", "public"),
		"an unknown key":                gitHub(nil, "header", `{"kid": "second"}`),
		"a merge request":               gitLab(map[string]any{"pipeline_source": "merge_request_event"}),
		"another project":               gitLab(map[string]any{"project_id": "23", "project_path": "acme/blog"}),
		"an unprotected branch":         gitLab(map[string]any{"ref_protected": "false"}),
		"another environment":           gitLab(map[string]any{"environment": "review/x"}),
		"a developer":                   gitLab(map[string]any{"user_access_level": "developer"}),
		"a truth value for a text":      gitLab(map[string]any{"ref_protected": true}),
	} {
		if text, status, code := w.exchange(t, token); text != "" || status == 200 || status >= 500 {
			t.Errorf("%s: got %d %s", name, status, code)
		}
	}
}

// A key that the service withdraws is refused, also for tokens that it signed before.
func testRotatedCIService(t *testing.T, w *jobsWorld) {
	old := w.gitHub.token(gitHubJob(w.url))
	w.gitHub.stop()
	w.gitHub.run("second")
	eventually(t, "the new key", time.Minute, func() error {
		if _, status, code := w.exchange(t, w.gitHub.token(gitHubJob(w.url))); status != 200 {
			return fmt.Errorf("got %d %s", status, code)
		}
		return nil
	})
	if _, status, code := w.exchange(t, old); status == 200 {
		t.Errorf("a token of a withdrawn key: got %d %s", status, code)
	}
}
