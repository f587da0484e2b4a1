package policy

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"unicode/utf8"

	"github.com/cedar-policy/cedar-go"
	"github.com/goccy/go-yaml/ast"
)

// A Prune is a change of the policies that takes something away and adds nothing: the
// permit Policy; all scopes of it but Keep; or Member of Group.
type Prune struct {
	Policy        string
	Keep          []string // sorted; nil: the whole permit goes
	Group, Member string
}

// String describes the change.
func (p Prune) String() string {
	switch {
	case p.Group != "":
		return fmt.Sprintf("remove %s from group %s", p.Member, p.Group)
	case p.Keep != nil:
		return fmt.Sprintf("narrow the permit %s to %s", p.Policy, strings.Join(p.Keep, ", "))
	}
	return fmt.Sprintf("remove the permit %s", p.Policy)
}

// A Proposal is a set of changes after which the policies load, and pass their own
// scenarios.
type Proposal struct {
	Made   []Prune
	Left   []LeftPrune
	Files  []ChangedFile // sorted by name
	Tested int           // scenarios that passed; zero: the folder has none
}

// A LeftPrune is a change that was not made.
type LeftPrune struct {
	Prune
	Why string
}

// A ChangedFile is a file of the policy folder with a change, as hunks of a unified diff.
type ChangedFile struct {
	Name  string
	Hunks string
}

// Propose makes as many of the changes as leave policies that load and pass their own
// scenarios. It changes a copy of the folder in memory.
func (e *Engine) Propose(ctx context.Context, changes []Prune) (*Proposal, error) {
	return (&pruner{ctx: ctx, in: e.in, engine: e}).propose(changes)
}

// ProposeDecided is Propose for changes that people have decided on: they are made even if a
// scenario still expects what they take away. Its author has to change the scenario too.
func (e *Engine) ProposeDecided(ctx context.Context, changes []Prune) (*Proposal, error) {
	return (&pruner{ctx: ctx, in: e.in, engine: e, decided: true}).propose(changes)
}

func (s *pruner) propose(changes []Prune) (*Proposal, error) {
	if _, why := s.try(nil); why != "" {
		return nil, errors.New("the policies have a mistake before any change: " + why)
	}
	var p Proposal
	if tested, why := s.try(changes); why == "" {
		p.Made, p.Tested = changes, tested
	} else {
		for _, c := range changes { // one after the other, because each may spoil the rest
			tested, why := s.try(append(slices.Clone(p.Made), c))
			if why != "" {
				p.Left = append(p.Left, LeftPrune{c, why})
				continue
			}
			p.Made, p.Tested = append(p.Made, c), tested
		}
	}
	cuts, err := s.cuts(p.Made)
	if err != nil {
		return nil, err
	}
	for _, name := range sortedKeys(cuts) {
		text, err := fs.ReadFile(s.in.FS, name)
		if err != nil {
			return nil, err
		}
		p.Files = append(p.Files, ChangedFile{name, hunks(text, cuts[name])})
	}
	return &p, s.ctx.Err()
}

// An overlay is a folder with other contents of some files.
type overlay struct {
	fs.FS
	changed map[string][]byte
}

// ReadFile implements fs.ReadFileFS.
func (o overlay) ReadFile(name string) ([]byte, error) {
	if text, ok := o.changed[name]; ok {
		return text, nil
	}
	return fs.ReadFile(o.FS, name)
}

// A pruner tries changes of a policy folder.
type pruner struct {
	ctx    context.Context
	in     Inputs
	engine *Engine // of the folder without changes

	decided bool // the scenarios are not run
}

// try loads the folder with the changes and runs its scenarios. It returns how many there
// are, or why the changes cannot be made.
func (s *pruner) try(changes []Prune) (tested int, why string) {
	cuts, err := s.cuts(changes)
	if err != nil {
		return 0, err.Error()
	}
	files := overlay{s.in.FS, map[string][]byte{}}
	for name, list := range cuts {
		text, err := fs.ReadFile(s.in.FS, name)
		if err != nil {
			return 0, err.Error()
		}
		files.changed[name] = cutText(text, list)
	}
	in := s.in
	in.FS = files
	engine, err := Load(in)
	if err != nil {
		return 0, "the policies would not load: " + firstLine(err.Error())
	}
	if s.decided {
		return 0, ""
	}
	report, err := Test(s.ctx, engine, files)
	switch {
	case errors.Is(err, ErrNoScenario):
		return 0, ""
	case err != nil:
		return 0, firstLine(err.Error())
	case len(report.Failures) > 0:
		f := report.Failures[0]
		return 0, fmt.Sprintf("the scenario %q (%s:%d) fails", f.Name, f.File, f.Line)
	}
	return report.Ran, ""
}

func firstLine(text string) string {
	line, _, _ := strings.Cut(text, "\n")
	return line
}

// A cut replaces a part of a file, in bytes.
type cut struct {
	from, to int
	insert   string
}

// cuts returns the changes of each file, sorted and apart from each other.
func (s *pruner) cuts(changes []Prune) (map[string][]cut, error) {
	cuts := map[string][]cut{}
	members := map[string][]string{} // to remove, by group
	for _, c := range changes {
		if c.Group != "" {
			if s.engine.excludes(c.Group) {
				return nil, fmt.Errorf("a rule refuses access to members of group %q: without the member, more could be permitted", c.Group)
			}
			members[c.Group] = append(members[c.Group], c.Member)
			continue
		}
		r := s.engine.rules[cedar.PolicyID(c.Policy)]
		if r == nil || !r.permit {
			return nil, fmt.Errorf("there is no permit %q in the folder", c.Policy)
		}
		one := r.removal()
		if c.Keep != nil {
			one = r.narrowing(c.Keep)
		}
		shift := len(r.raw) - len(r.text) // a byte order mark
		cuts[r.name] = append(cuts[r.name], cut{one.from + shift, one.to + shift, one.insert})
	}
	if len(members) > 0 {
		list, err := s.memberCuts(members)
		if err != nil {
			return nil, err
		}
		cuts[groupsName] = list
	}
	for _, list := range cuts {
		slices.SortFunc(list, func(a, b cut) int { return a.from - b.from })
	}
	return cuts, nil
}

// end returns the offset of the semicolon that ends the rule.
func (r *rule) end() int { return r.from + bytes.LastIndexByte(r.code[r.from:r.to], ';') }

// removal removes the rule with the comments right above it, up to the next line.
func (r *rule) removal() cut {
	from, to := r.lineStart(r.from), r.end()+1
	for from > 0 {
		above := r.lineStart(from - 1)
		if !bytes.HasPrefix(bytes.TrimSpace(r.text[above:from]), []byte("//")) {
			break
		}
		from = above
	}
	if rest := bytes.IndexByte(r.text[to:], '\n'); rest >= 0 && len(bytes.TrimSpace(r.code[to:to+rest])) == 0 {
		to += rest + 1
	}
	if from == 0 || from == 1 || r.text[from-1] == '\n' && r.text[from-2] == '\n' { // one of the two empty lines around it
		for to < len(r.text) && r.text[to] == '\n' {
			to++
		}
	}
	return cut{from, to, ""}
}

// lineStart returns where the line of an offset begins; the offset if other code is before
// it on the line.
func (r *rule) lineStart(at int) int {
	start := bytes.LastIndexByte(r.text[:at], '\n') + 1
	if len(bytes.TrimSpace(r.code[start:at])) > 0 {
		return at
	}
	return start
}

// scopesList is how most policies bound the scopes.
var scopesList = regexp.MustCompile(`\[[^\]]*\](\s*\.\s*containsAll\s*\(\s*context\.scopes\s*\))`)

// narrowing adds a condition on the scopes, or shortens the one that is there. It shortens
// only a list that bounds the scopes in every case: another one may exclude them, so that a
// shorter list would permit more.
func (r *rule) narrowing(keep []string) cut {
	quoted := make([]string, len(keep))
	for i, scope := range keep {
		quoted[i] = strconv.Quote(scope) // scopes have no characters that Cedar escapes
	}
	list := "[" + strings.Join(quoted, ", ") + "]"
	body := r.code[r.from:r.to]
	if found := scopesList.FindAllSubmatchIndex(body, -1); len(found) == 1 && bytes.Count(body, []byte("context.scopes")) == 1 && r.boundsScopes(keep) {
		return cut{r.from + found[0][0], r.from + found[0][2], list}
	}
	return cut{r.end(), r.end(), " when {\n  " + list + ".containsAll(context.scopes)\n}"}
}

// memberCuts removes members from groups.
func (s *pruner) memberCuts(members map[string][]string) (cuts []cut, err error) {
	src, err := readSource(s.in.FS, groupsName)
	if err != nil {
		return nil, err
	}
	entries := newEntriesFile(src, &problems{}, "group", "", checkGroupName).entries()
	for _, group := range sortedKeys(members) {
		left := len(members[group])
		for _, list := range listsOf(entries[group]) {
			cut, removed, err := src.withoutItems(list, members[group])
			if err != nil {
				return nil, fmt.Errorf("group %q: %w", group, err)
			}
			if left -= removed; removed > 0 {
				cuts = append(cuts, cut...)
			}
		}
		if left > 0 {
			return nil, fmt.Errorf("groups.yaml does not list all of %s in group %q as plain items", strings.Join(members[group], ", "), group)
		}
	}
	return cuts, nil
}

// listsOf returns the lists of members and of workloads of a group.
func listsOf(group ast.Node) (lists []*ast.SequenceNode) {
	var pairs []*ast.MappingValueNode
	switch n := group.(type) {
	case *ast.MappingNode:
		pairs = n.Values
	case *ast.MappingValueNode:
		pairs = []*ast.MappingValueNode{n}
	}
	for _, p := range pairs {
		if name := p.Key.GetToken().Value; name == "members" || name == "workloads" {
			if list, ok := p.Value.(*ast.SequenceNode); ok {
				lists = append(lists, list)
			}
		}
	}
	return lists
}

// withoutItems returns the cuts that remove items from a list.
func (s *source) withoutItems(list *ast.SequenceNode, items []string) (cuts []cut, removed int, err error) {
	shift := len(s.raw) - len(s.text)
	var kept []string
	for i, v := range list.Values {
		t := v.GetToken()
		from := s.offset(t.Position.Line, t.Position.Column)
		if slices.Contains(items, t.Value) {
			removed++
			if !list.IsFlowStyle {
				start, end := s.lines[t.Position.Line-1], len(s.text)
				if t.Position.Line < len(s.lines) {
					end = s.lines[t.Position.Line]
				}
				cuts = append(cuts, cut{start + shift, end + shift, ""})
			}
			continue
		}
		end := len(s.text)
		if list.IsFlowStyle {
			end = s.offset(list.End.Position.Line, list.End.Position.Column)
			if i+1 < len(list.Values) {
				next := list.Values[i+1].GetToken().Position
				end = s.offset(next.Line, next.Column)
			}
		}
		kept = append(kept, strings.TrimRight(string(s.text[from:end]), " \t\r\n,"))
	}
	switch {
	case removed == 0:
	case list.IsFlowStyle:
		from, to := s.offset(list.Start.Position.Line, list.Start.Position.Column), s.offset(list.End.Position.Line, list.End.Position.Column)
		if bytes.ContainsAny(s.text[from:to], "#\n") {
			return nil, 0, errors.New("a list with comments or over several lines must be edited by hand")
		}
		cuts = []cut{{from + shift, to + 1 + shift, "[" + strings.Join(kept, ", ") + "]"}}
	case len(kept) == 0:
		return nil, 0, errors.New("its last member must be removed by hand: a list needs an item")
	}
	return cuts, removed, nil
}

// offset returns the offset of a line and a column, which counts characters.
func (s *source) offset(line, column int) int {
	at := s.lines[line-1]
	for range column - 1 {
		_, size := utf8.DecodeRune(s.text[at:])
		at += size
	}
	return at
}

// cutText returns a text with its cuts.
func cutText(text []byte, cuts []cut) (out []byte) {
	at := 0
	for _, c := range cuts {
		out = append(append(out, text[at:c.from]...), c.insert...)
		at = c.to
	}
	return append(out, text[at:]...)
}
