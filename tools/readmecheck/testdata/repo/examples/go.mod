module example.com/owner/lib/examples

go 1.26

require (
	example.com/dep v0.0.0
	example.com/owner/lib v0.0.0
)

replace (
	example.com/dep => ./dep
	example.com/owner/lib => ../
)
