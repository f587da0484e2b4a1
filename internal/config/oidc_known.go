package config

import (
	"fmt"
	"maps"
	"slices"
	"strings"

	"accessbroker.internal/attest/mapping"
)

// A platform is a kind of issuer whose tokens the broker knows, so that it can tell a rule that
// lets too many workloads in.
type platform struct {
	name string

	// tenants are claims that bound who a token is from. A rule needs one: everyone can get a
	// token of such an issuer.
	tenants []string

	// ids are the claims that keep their meaning if a name is given away, and names are those
	// that do not. A condition on a name needs one of the ids.
	ids, names []string

	// states are claims that bound which code runs: a rule without any covers each branch.
	states []string

	// trigger is the claim that states why the job runs, and usual are its values for jobs that
	// no outsider starts. They apply to a rule that does not name the claim.
	trigger string
	usual   []string

	texts bool // all of its claims are texts

	// parted are the claims with a slash or a colon, which are never one segment of a path.
	parted []string
}

var gitHub = platform{
	name:    "GitHub Actions",
	tenants: []string{"sub", "repository", "repository_id", "repository_owner", "repository_owner_id", "enterprise_id"},
	ids:     []string{"repository_id", "repository_owner_id", "enterprise_id"},
	names:   []string{"sub", "repository", "repository_owner", "workflow_ref", "job_workflow_ref"},
	states:  []string{"sub", "ref", "ref_protected", "environment", "workflow_ref", "job_workflow_ref"},
	trigger: "event_name", usual: []string{"push", "release", "schedule", "workflow_dispatch"},
	texts:  true,
	parted: []string{"sub", "repository", "ref", "workflow_ref", "job_workflow_ref"},
}

var gitLab = platform{
	name:    "GitLab",
	tenants: []string{"sub", "project_path", "project_id", "namespace_path", "namespace_id"},
	ids:     []string{"project_id", "namespace_id"},
	names:   []string{"sub", "project_path", "namespace_path", "ci_config_ref_uri"},
	states:  []string{"sub", "ref", "ref_path", "ref_protected", "environment"},
	trigger: "pipeline_source", usual: []string{"api", "push", "schedule", "web"},
	parted: []string{"sub", "project_path", "ref_path", "ci_config_ref_uri"},
}

// platforms are the issuers that everyone can get a token of, by URL.
var platforms = map[string]platform{
	"https://token.actions.githubusercontent.com": gitHub,
	"https://gitlab.com":                          gitLab,
	"https://accounts.google.com":                 {name: "Google", tenants: []string{"sub", "email", "azp", "google"}, ids: []string{"sub", "azp", "google"}, names: []string{"email"}},
	"https://app.terraform.io":                    {name: "HCP Terraform", tenants: []string{"sub", "terraform_organization_id", "terraform_organization_name", "terraform_workspace_id", "terraform_project_id"}},
	"https://agent.buildkite.com":                 {name: "Buildkite", tenants: []string{"sub", "organization_id", "organization_slug", "pipeline_id", "cluster_id"}},
	"https://oidc.vercel.com":                     {name: "Vercel", tenants: []string{"sub", "owner", "owner_id", "project_id"}},
}

// platformOf returns the platform of an issuer, by its URL or by the claims that rules name;
// nil: it is not known, and may be one of the operator's own, such as a cluster.
func platformOf(issuer string, rules []mappingRuleFile) *platform {
	if p, known := platforms[issuer]; known {
		return &p
	}
	named := func(names ...string) bool {
		return slices.ContainsFunc(rules, func(r mappingRuleFile) bool {
			return slices.ContainsFunc(names, func(name string) bool {
				_, ok := r.Claims[name]
				return ok || strings.Contains(r.SPIFFEID, "${"+name+"}")
			})
		})
	}
	microsoft := strings.HasPrefix(issuer, "https://sts.windows.net/") || strings.HasPrefix(issuer, "https://login.microsoftonline.com/")
	switch {
	case strings.HasPrefix(issuer, "https://token.actions."), strings.HasSuffix(issuer, "/_services/token"), named("job_workflow_ref", "workflow_ref", "repository_id", "repository_owner", "repository_owner_id", "event_name"):
		return &gitHub // of an enterprise, on ghe.com, or a GitHub Enterprise Server
	case named("project_path", "namespace_path", "namespace_id", "pipeline_source", "user_access_level", "ci_config_ref_uri"),
		named("project_id") && named("ref", "ref_path", "ref_protected", "ref_type", "environment", "environment_protected"):
		return &gitLab // managed by the operator
	case microsoft:
		return &platform{name: "Microsoft Entra ID", tenants: []string{"sub", "oid", "azp", "appid", "xms_mirid"}}
	}
	return nil
}

// knownRule checks a rule for an issuer of a platform, and returns it with the condition on
// the trigger.
func (c *checker) knownRule(key string, p *platform, r mappingRuleFile) mappingRuleFile {
	if p == nil {
		return r
	}
	requires := func(names []string) bool {
		return slices.ContainsFunc(names, func(name string) bool { _, ok := r.Claims[name]; return ok })
	}
	made := func(names []string) bool {
		return slices.ContainsFunc(names, func(name string) bool { return strings.Contains(r.SPIFFEID, "${"+name+"}") })
	}
	for _, name := range p.parted {
		if made([]string{name}) {
			c.report(key+"/spiffe_id", "the claim %s of %s is never one segment of a path: use %s", name, p.name, strings.Join(p.ids, " or "))
		}
	}
	if !requires(p.tenants) {
		c.report(key+"/claims", "everyone can get a token of %s: require one of %s", p.name, strings.Join(p.tenants, ", "))
	}
	if requires(p.names) && len(p.ids) > 0 && !requires(p.ids) && !made(p.ids) {
		c.warn(key+"/claims", "after a rename or a deletion, someone else can get a name on %s: also require one of %s, which stay the same", p.name, strings.Join(p.ids, ", "))
	}
	if len(p.states) > 0 && !requires(p.states) {
		c.warn(key+"/claims", "every branch gets this identity, whoever pushes to it: require one of %s", strings.Join(p.states, ", "))
	}
	if p.texts {
		c.onlyTexts(key+"/claims", p, r.Claims)
	}
	if p.trigger == "" || requires([]string{p.trigger}) {
		return r
	}
	claims := maps.Clone(map[string]mapping.Want(r.Claims))
	usual := mapping.Want{}
	for _, value := range p.usual {
		usual.Values = append(usual.Values, mapping.Text(value))
	}
	if claims != nil { // a rule without conditions stays one
		claims[p.trigger] = usual
	}
	r.Claims = claims
	return r
}

// onlyTexts reports values that a platform's claims never have.
func (c *checker) onlyTexts(key string, p *platform, claims map[string]mapping.Want) {
	for name, w := range claims {
		for _, v := range w.Values {
			if !v.IsText() {
				c.report(fmt.Sprintf("%s/%s", key, name), "the claims of %s are texts: write %q", p.name, v.String())
			}
		}
	}
}
