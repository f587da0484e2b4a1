package main

import (
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"slices"
)

// A mutant is one change to one file: the bytes from start to end are replaced
// by text.
type mutant struct {
	file       string
	line       int
	start, end int
	text       string
	what       string // for people, such as "== becomes !="
}

// apply returns the source with the change made.
func (m mutant) apply(source []byte) []byte {
	return slices.Concat(source[:m.start], []byte(m.text), source[m.end:])
}

var operators = map[token.Token]token.Token{
	token.EQL: token.NEQ, token.NEQ: token.EQL,
	token.LSS: token.LEQ, token.LEQ: token.LSS,
	token.GTR: token.GEQ, token.GEQ: token.GTR,
	token.LAND: token.LOR, token.LOR: token.LAND,
}

// mutantsOf returns every mutant of a file, in the order of the source.
// Removed code stays in the file behind a false condition, so that a variable
// that only it uses does not stop the compiler.
func mutantsOf(file string, source []byte) ([]mutant, error) {
	fset := token.NewFileSet()
	parsed, err := parser.ParseFile(fset, file, source, parser.SkipObjectResolution)
	if err != nil {
		return nil, err
	}
	c := &collector{fset: fset, file: file, source: source}
	for _, d := range parsed.Decls {
		if fn, ok := d.(*ast.FuncDecl); ok && fn.Body != nil {
			c.function(fn.Type, fn.Body)
		}
	}
	slices.SortStableFunc(c.mutants, func(a, b mutant) int { return a.start - b.start })
	return c.mutants, nil
}

type collector struct {
	fset    *token.FileSet
	file    string
	source  []byte
	mutants []mutant
}

func (c *collector) add(from, to token.Pos, text, what string) {
	at := c.fset.Position(from)
	c.mutants = append(c.mutants, mutant{file: c.file, line: at.Line, start: at.Offset, end: c.fset.Position(to).Offset, text: text, what: what})
}

func (c *collector) text(n ast.Node) string {
	return string(c.source[c.fset.Position(n.Pos()).Offset:c.fset.Position(n.End()).Offset])
}

// function collects the mutants of a function's body. A function literal has
// results of its own, so it starts again there.
func (c *collector) function(kind *ast.FuncType, body *ast.BlockStmt) {
	ast.Inspect(body, func(n ast.Node) bool {
		switch n := n.(type) {
		case *ast.FuncLit:
			c.function(n.Type, n.Body)
			return false
		case *ast.BinaryExpr:
			if other, ok := operators[n.Op]; ok {
				c.add(n.OpPos, n.OpPos+token.Pos(len(n.Op.String())), other.String(), fmt.Sprintf("%s becomes %s", n.Op, other))
			}
		case *ast.ReturnStmt:
			c.booleans(kind, n)
		case *ast.IfStmt:
			c.add(n.Cond.Pos(), n.Cond.End(), "("+c.text(n.Cond)+") && false", "the body of this if is removed")
			if len(n.Body.List) > 1 { // the only statement is covered by the line above
				c.exit(n.Body.List)
			}
		case *ast.CaseClause:
			c.exit(n.Body)
		}
		return true
	})
}

// booleans negates each boolean result of a return statement.
func (c *collector) booleans(kind *ast.FuncType, ret *ast.ReturnStmt) {
	results := resultTypes(kind)
	if len(results) != len(ret.Results) {
		return // a bare return, or the results of one call
	}
	for i, r := range ret.Results {
		if id, ok := results[i].(*ast.Ident); ok && id.Name == "bool" {
			c.add(r.Pos(), r.End(), "!("+c.text(r)+")", "the boolean result is negated")
		}
	}
}

func resultTypes(kind *ast.FuncType) []ast.Expr {
	var types []ast.Expr
	if kind.Results == nil {
		return nil
	}
	for _, f := range kind.Results.List {
		for range max(1, len(f.Names)) {
			types = append(types, f.Type)
		}
	}
	return types
}

// exit removes the return, continue or break at the end of a block.
func (c *collector) exit(block []ast.Stmt) {
	if len(block) == 0 {
		return
	}
	last := block[len(block)-1]
	switch s := last.(type) {
	case *ast.ReturnStmt:
		c.add(s.Pos(), s.End(), "if false { "+c.text(s)+" }", "this return is removed")
	case *ast.BranchStmt:
		if s.Tok == token.CONTINUE || s.Tok == token.BREAK {
			c.add(s.Pos(), s.End(), "if false { "+c.text(s)+" }", fmt.Sprintf("this %s is removed", s.Tok))
		}
	}
}
